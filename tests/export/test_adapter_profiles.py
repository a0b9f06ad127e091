"""`fedlora export-adapter --profile`: each file runs on the graph of its profile, as ONNX Runtime itself reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import ConfigError
from fedlora.exported.adapter_manifest import FILE_PROFILES, read_adapter_manifest
from fedlora.exported.profiles import graph_inputs, graph_name
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_client.reference import logits as torch_logits
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.checks.verify import verify_adapter
from fedlora_export.commands.export_adapter import export_adapter
from fedlora_export.export import export_base

from tests.export.graph_runs import open_session
from tests.reference.agreement import assert_close
from tests.tiny.adapters import LORAS, random_adapter
from tests.tiny.encoders import EVERY, save_encoder_pack
from tests.tiny.llamas import DEFAULT, Variant
from tests.tiny.tokens import random_tokens

_LOADED: list[Any] = []  # the options of a run do not keep an adapter alive


def active(path: Path) -> Any:
    """The options of a run in which ONNX Runtime itself reads an adapter file and makes it active."""
    options, adapter = ort.RunOptions(), ort.LoraAdapter()
    adapter.Load(str(path))
    options.add_active_adapter(adapter)
    _LOADED.append(adapter)
    return options


def active_logits(path: Path, graph: Path, pack: BasePack, tokens: Any) -> Any:
    """The logits of a graph with an active adapter."""
    shape = pack.shape
    empty = np.zeros((len(tokens), shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": empty for i in range(shape.num_layers) for kind in ("key", "value")}
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **past}
    return open_session(graph).run(["logits"], feeds, active(path))[0]


@pytest.mark.parametrize("config", LORAS)
def test_a_file_for_the_profile_fast_gives_the_logits_of_compat(
    graphs: Callable[[Variant], BasePack], tmp_path: Path, config: str
) -> None:
    pack = graphs(DEFAULT)
    adapter, tokens = random_adapter(pack, LORAS[config]), random_tokens(pack, 2, 10)
    source, logits = tmp_path / "adapter", []
    write_peft(source, PeftDirectory(adapter=adapter, base_fingerprint=pack.fingerprint))
    for profile in FILE_PROFILES:
        path = tmp_path / profile
        arguments = [source, "-o", path, "--base", pack.directory, "--profile", profile]
        assert CliRunner().invoke(export_adapter, [str(argument) for argument in arguments]).exit_code == 0
        manifest = read_adapter_manifest(path)
        assert manifest is not None
        assert manifest.profile == profile
        assert manifest.inputs.keys() <= graph_inputs(pack.model, profile).keys()
        graph = pack.directory / graph_name(pack.model, manifest.profile)
        logits.append(active_logits(path, graph, pack, tokens))
    assert len(logits) == 2
    assert_close(logits[1], logits[0])
    assert_close(logits[0], torch_logits(pack, tokens, adapter))


def test_the_profile_fast_needs_a_base_to_be_named(base: BasePack, tmp_path: Path) -> None:
    content = PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint)
    write_peft(tmp_path / "adapter", content)
    arguments = [str(tmp_path / "adapter"), "-o", str(tmp_path / "a"), "--profile", "fast"]
    result = CliRunner().invoke(export_adapter, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "profile fast joins the modules that read the same input" in str(result.exception)
    assert "pass --base PACK" in str(result.exception)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", EVERY)
def test_an_encoder_takes_a_file_for_the_profile_fast(tmp_path: Path, name: str) -> None:
    export_base(
        save_encoder_pack(name, tmp_path / "pack"),
        tmp_path / "model",
        profiles=FILE_PROFILES,
        accuracy_level=FLOAT_ACCURACY,
    )
    base = open_pack(tmp_path / "model")
    adapter, path, results = random_adapter(base), tmp_path / "model" / "a.onnx_adapter", []
    tokens = np.random.default_rng(3).integers(5, 50, (2, 6))
    for profile in FILE_PROFILES:
        write_onnx_adapter(adapter, base.fingerprint, path, joined_for=base.model if profile == "fast" else None)
        assert verify_adapter(path, base).startswith(f"a.onnx_adapter: profile {profile}, {len(adapter.pairs)} modules")
        session = open_session(base.directory / graph_name(base.model, profile))
        feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        results.append(session.run(None, feeds, active(path))[0])
        assert np.abs(results[-1] - session.run(None, feeds)[0]).max() > 1e-3
    assert_close(results[1], results[0])
