"""Adapters of prompt and prefix tuning as files: what begins a cache, against PEFT; and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import peft
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, MissingExtraError
from fedlora.exported.adapter_file import check_inputs, load_adapter_file
from fedlora.exported.cache_prefix import cache_inputs, prefix_adapter, stacked
from fedlora.exported.profiles import file_inputs
from fedlora.exported.sidecar import sidecar_of
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_client.reference import logits as torch_logits
from fedlora_export.adapter_export import export_peft
from fedlora_export.checks.verify import verify_adapter
from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.local.canary import text_loss
from fedlora_serve.local.engine import Engine

from tests.export.graph_runs import open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle, pefts_own_warnings
from tests.tiny.kinds import adapter_of_kind
from tests.tiny.tokens import random_tokens

# Heads of 8, which no attention rotates itself; a window shorter than the text, and scaled embeddings; joined modules.
CASES = (("prompt", "llama-biases"), ("prompt", "gemma2"), ("prefix", "phi3"))
PLAIN = {
    "rank": 4, "alpha": 8.0, "use_rslora": False, "target_modules": ["q_proj"], "rank_pattern": {}, "alpha_pattern": {}
}  # fmt: skip


def saved(base: BasePack, directory: Path, kind: str, seed: int = 1) -> Path:
    adapter = adapter_of_kind(kind, base, seed)
    write_peft(directory, PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name="base")
    return directory


def exported(base: BasePack, folder: Path, kind: str, seed: int = 1) -> Path:
    path = folder / f"{kind}-{seed}.onnx_adapter"
    export_peft(saved(base, folder / f"{kind}-{seed}", kind, seed), path, base)
    return path


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_text_that_begins_with_the_file_has_pefts_scores(
    family_folder: Callable[[str], BasePack], kind: str, family: str, tmp_path: Path
) -> None:
    base = family_folder(family)
    path, tokens = exported(base, tmp_path, kind), random_tokens(base, 1, 12)
    with pefts_own_warnings(), torch.no_grad():
        model = peft.PeftModel.from_pretrained(oracle(base), str(tmp_path / f"{kind}-1")).eval()
        theirs = model(torch.from_numpy(tokens)).logits[:, -12:].float().numpy()
    # ONNX Runtime's own reader, and the graph as it is: the names of the values are its inputs.
    read = ort.AdapterFormat.read_adapter(str(path))
    content = {name: value.numpy().copy() for name, value in read.get_parameters().items()}
    feeds = {"input_ids": tokens, "attention_mask": np.ones((1, 3 + 12), np.int64), **content}
    assert_close(open_session(base.directory / "decoder.onnx").run(["logits"], feeds)[0], theirs)
    engine = Engine(base.directory, threads=1)
    decoding, row = engine.start(engine.load_adapter(path)), tokens[0].tolist()
    for begin, end in ((0, 7), (7, 8), (8, 12)):
        assert_close(decoding.step(row[begin:end]), theirs[0, end - 1])
    assert decoding.length == 3 + 12
    nats = torch.nn.functional.cross_entropy(torch.from_numpy(theirs[0, :-1]), torch.from_numpy(tokens[0, 1:]))
    assert text_loss(engine, row, engine.load_adapter(path)) == pytest.approx(float(nats), rel=1e-5)  # of a canary
    # Whatever kind it was: keys and values are a prefix.
    values = load_adapter_file(path, base_fingerprint=base.fingerprint, inputs=file_inputs(base.model, "compat")).values
    assert_close(torch_logits(base, tokens, prefix_adapter(stacked(values, base.shape, "a"))), theirs)


def test_a_file_is_known_by_its_manifest_and_fits_graphs_of_every_profile(base: BasePack, tmp_path: Path) -> None:
    for profile in ("compat", "fast"):
        path = tmp_path / f"{profile}.onnx_adapter"
        export_peft(saved(base, tmp_path / profile, "prefix"), path, base, profile=profile)
        loaded = load_adapter(path, base)
        assert (loaded.virtual_tokens, loaded.rank, dict(loaded.inputs)) == (3, 0, {})
        assert loaded.prefix is not None
        assert loaded.size_bytes == loaded.prefix.nbytes
        assert loaded.digest == load_adapter(tmp_path / profile, base).digest
        assert verify_adapter(path, base) == (
            f"{profile}.onnx_adapter: keys and values of 3 virtual tokens that fit, finite; digest and base as its "
            "manifest tells"
        )
    manifest = json.loads(sidecar_of(path).read_text())
    assert manifest["lora"] == {"method": "prefix", "num_virtual_tokens": 3}
    for lora, message in {
        '{"method": "prefix", "num_virtual_tokens": 4}': "of 3 virtual tokens; lora says 4: export the adapter again",
        '{"method": "lora", "num_virtual_tokens": 3}': "lora: method is lora; expected one with virtual tokens",
        '{"method": "prefix", "num_virtual_tokens": 0}': "num_virtual_tokens must be an integer from 1 to 4096",
        json.dumps(PLAIN): "of 3 virtual tokens; lora says 0",
    }.items():
        sidecar_of(path).write_text(json.dumps({**manifest, "lora": json.loads(lora)}))
        with pytest.raises(AdapterError, match=message):
            load_adapter(path, base)


def test_values_that_are_not_those_of_every_layer_are_refused_by_name(base: BasePack) -> None:
    inputs = file_inputs(base.model, "compat")
    whole = {name: np.zeros((1, shape[1], 3, shape[3]), np.float32) for name, shape in cache_inputs(base.model).items()}
    name, *_ = whole
    check_inputs(whole, inputs, "a")
    for changed, message in (
        ({key: value for key, value in whole.items() if key != name}, f"{name} is missing; expected a key and a value"),
        ({**whole, "more": whole[name]}, "more is beside keys and values of virtual tokens"),
        ({**whole, name: whole[name][:, :, :2]}, r"keys and values of \[2, 3\] virtual tokens; expected one number"),
        ({key: value[:, :, :0] for key, value in whole.items()}, r"keys and values of \[0\] virtual tokens"),
        ({**whole, name: whole[name][0]}, rf"{name} is \[\d+, 3, \d+\]; the base expects 1 x \d+ x virtual tokens x"),
        ({**whole, name: whole[name][..., :1]}, rf"{name} is \[1, \d+, 3, 1\]; the base expects"),
    ):
        with pytest.raises(AdapterMismatchError, match=message):
            check_inputs(changed, inputs, "a")


def test_what_cannot_be_exported_or_served_says_what_to_do(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = saved(base, tmp_path / "p", "prompt")
    with pytest.raises(AdapterError, match=rf"torch computes once.* fedlora export-adapter {directory} --base BASE"):
        load_adapter(directory, base)
    with pytest.raises(AdapterMismatchError, match="depends on the base; pass --base PACK"):
        export_peft(directory, tmp_path / "a")
    long = prefix_adapter(
        np.zeros((2 * base.shape.num_layers, base.shape.num_kv_heads, 64, base.shape.head_dim), np.float32)
    )
    write_peft(tmp_path / "long", PeftDirectory(adapter=long, base_fingerprint=base.fingerprint), base_name="base")
    for refused in (
        lambda: export_peft(tmp_path / "long", tmp_path / "a", base),
        lambda: load_adapter(tmp_path / "long", base),
    ):
        with pytest.raises(AdapterMismatchError, match="64 virtual tokens leave no room in the base's context of 64"):
            refused()
    monkeypatch.setitem(sys.modules, "fedlora_client.prefix", None)  # as where it is not installed
    with pytest.raises(MissingExtraError, match=r"the extra 'client' is not installed: pip install"):
        export_peft(directory, tmp_path / "a", base)
    assert not (tmp_path / "a").exists()
