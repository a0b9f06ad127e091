"""Every kind of adapter that a graph takes: PEFT's own logits in each profile, by way of a file; what no graph takes."""

# S rows, T tokens of each, V vocabulary

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fedlora.base.pack import BasePack, open_pack
from fedlora.cli import commands
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError, GraphError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.adapter_manifest import FILE_PROFILES
from fedlora.exported.graph_manifest import check_graph_file
from fedlora.exported.profiles import Profile, graph_inputs, graph_name
from fedlora.exported.sidecar import sidecar_of
from fedlora.family import DecoderShape
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import BY_NAME
from fedlora.lora.output_scale import METHODS
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.peft.for_base import adapter_of, scaled_of
from fedlora.row_lora.layout import adapter_layout
from fedlora_export.adapter_export import export_peft, write_onnx_adapter
from fedlora_export.checks.graph_runs import run_graph
from fedlora_export.checks.verify import verify_folder
from fedlora_export.export import export_base
from numpy.typing import NDArray

from tests.export.graph_runs import graph_logits, open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import read_by_peft
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import encoder_pack
from tests.tiny.families import family_pack
from tests.tiny.kinds import OF_ENCODERS as IN_GRAPHS
from tests.tiny.kinds import adapter_of_kind, section_of
from tests.tiny.tokens import random_texts, random_tokens

PROFILES: tuple[Profile, ...] = ("compat", "fast", "rows", "kernel")
DECODERS = {"llama-biases": PROFILES, "phi3": ("compat", "kernel")}  # every module biased; joined ones
TOKENS = 9
Floats = NDArray[np.float32]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BasePack]:
    """The pack of a model with graphs that take scales, each of which was compared with the trainer's logits."""
    parent = tmp_path_factory.mktemp("scaled")

    @cache
    def export(name: str) -> BasePack:
        base, profiles = (family_pack(name), DECODERS[name]) if name in DECODERS else (encoder_pack(name), PROFILES[:2])
        written = export_base(base, parent / name, profiles=profiles, accuracy_level=FLOAT_ACCURACY, takes_scales=True)
        for graph in written:
            assert graph.exact is not None
            assert graph.profile == "kernel" or {"DoRA", "IA3"} <= graph.exact.keys()
        return open_pack(parent / name)

    return export


def saved(base: BasePack, adapter: Adapter, folder: Path) -> Path:
    write_peft(folder, PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name="base")
    return folder


def pefts(base: BasePack, folder: Path, tokens: NDArray[np.int64]) -> Floats:
    with torch.no_grad():
        logits: Floats = read_by_peft(base, folder)(torch.from_numpy(tokens)).logits.numpy()
    return logits


def read_file(base: BasePack, folder: Path, profile: Profile) -> dict[str, Floats]:
    """The adapter inputs in the file that is made of a PEFT directory."""
    path = folder.with_suffix(f".{profile}.onnx_adapter")
    export_peft(folder, path, base, profile=profile)
    inputs = graph_inputs(base.model, profile, takes_scales=True)
    return dict(load_adapter_file(path, base_fingerprint=base.fingerprint, inputs=inputs, profile=profile).values)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("kind", IN_GRAPHS)
def test_the_logits_of_a_decoder_are_pefts_in_every_profile(
    exported: Callable[[str], BasePack], family: str, kind: str, tmp_path: Path
) -> None:
    base = exported(family)
    # The exporter compared DoRA on all modules; here a group has some that nothing scales.
    some = (
        replace(section_of(kind), target_modules=("k_proj", "up_proj"))
        if (family, kind) == ("llama-biases", "dora")
        else None
    )
    folder = saved(base, adapter_of_kind(kind, base, section=some), tmp_path / "a")
    tokens = random_tokens(base, 2, TOKENS)
    expected = pefts(base, folder, tokens)
    adapter, _ = adapter_of(folder, base, scaled=True)
    for profile in DECODERS[family]:
        session = open_session(base.directory / graph_name(base.model, profile))
        if profile in FILE_PROFILES:
            assert_close(
                graph_logits(session, base, tokens, read_file(base, folder, profile), steps=(5, 1, 1, 1, 1)), expected
            )
            continue
        mask, plain = np.ones_like(tokens), random_adapter(base)
        # Beside a row of plain LoRA, which has the same scores beside a row without an adapter.
        got, at = run_graph(session, base, profile, tokens, mask, [adapter, plain], takes_scales=True)
        assert_close(got[0], expected[0, at[0]])
        alone, _ = run_graph(session, base, profile, tokens, mask, [None, plain], takes_scales=True)
        assert_close(got[1], alone[1])


@pytest.mark.parametrize("kind", IN_GRAPHS)
def test_the_scores_of_an_encoder_are_pefts(exported: Callable[[str], BasePack], kind: str, tmp_path: Path) -> None:
    base = exported("bert")
    folder, (tokens, mask) = (
        saved(base, adapter_of_kind(kind, base), tmp_path / "a"),
        random_texts(base, (TOKENS, TOKENS)),
    )
    expected = pefts(base, folder, tokens)
    for profile in FILE_PROFILES:
        session = open_session(base.directory / graph_name(base.model, profile))
        feeds: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        assert_close(session.run(None, feeds | read_file(base, folder, profile))[0], expected)


def test_without_an_adapter_a_graph_that_takes_scales_has_the_bits_of_one_that_does_not(
    exported: Callable[[str], BasePack], family_folder: Callable[[str], BasePack]
) -> None:
    base, before = exported("llama-biases"), family_folder("llama-biases")
    tokens = random_tokens(base, 2, TOKENS)
    sessions = [open_session(pack.directory / "decoder.onnx") for pack in (base, before)]
    mine, theirs = (graph_logits(session, base, tokens) for session in sessions)
    assert np.array_equal(mine, theirs)


def test_the_kinds_that_scale_are_those_that_are_exported_so() -> None:
    assert set(METHODS) == {name for name, kind in BY_NAME.items() if kind.scales}
    assert set(IN_GRAPHS) == {name for name, kind in BY_NAME.items() if kind.scales or kind.is_lora} - {"lora"}


def test_verify_and_inspect_tell_the_kind_of_a_file(exported: Callable[[str], BasePack], tmp_path: Path) -> None:
    base = exported("phi3")
    for kind in METHODS:
        export_peft(
            saved(base, adapter_of_kind(kind, base), tmp_path / kind), base.directory / f"{kind}.onnx_adapter", base
        )
    lines = list(verify_folder(base.directory))
    assert any(line.startswith("decoder.onnx") and line.endswith("output scales among them") for line in lines)
    dora, ia3 = (next(line for line in lines if line.startswith(kind)) for kind in METHODS)
    assert "profile compat, 8 modules of rank 4, 8 modules scaled (DoRA), finite" in dora
    assert "profile compat, 0 modules with factors, 4 modules scaled (IA3), finite" in ia3
    for kind in METHODS:
        path = base.directory / f"{kind}.onnx_adapter"
        told = CliRunner().invoke(commands, ["inspect", str(path)], catch_exceptions=False).output
        assert f"method                {BY_NAME[kind].title}" in told
        assert base.fingerprint in told
        path.unlink()
        sidecar_of(path).unlink()


@pytest.mark.parametrize("method", [None, "lora", "vera"])
def test_a_manifest_that_does_not_say_what_scales_is_refused(
    exported: Callable[[str], BasePack], tmp_path: Path, method: str | None
) -> None:
    base = exported("phi3")
    path = tmp_path / "a.onnx_adapter"
    export_peft(saved(base, adapter_of_kind("ia3", base), tmp_path / "a"), path, base)
    manifest = json.loads(sidecar_of(path).read_text())
    assert manifest.pop("method") == "ia3"
    sidecar_of(path).write_text(json.dumps(manifest | ({"method": method} if method else {})))
    with pytest.raises(AdapterError, match="expected dora or ia3 where they do"):
        load_adapter_file(path, base_fingerprint=base.fingerprint, inputs=graph_inputs(base.model, "compat"))


def test_a_scale_for_another_module_or_size_is_refused_by_its_name(
    exported: Callable[[str], BasePack], tmp_path: Path
) -> None:
    base = exported("llama-biases")
    path, inputs = tmp_path / "a.onnx_adapter", graph_inputs(base.model, "compat", takes_scales=True)
    export_peft(saved(base, adapter_of_kind("ia3", base), tmp_path / "a"), path, base)
    name = "model.layers.0.self_attn.k_proj.output_scale"
    for changed, words in (
        ({n: shape for n, shape in inputs.items() if n != name}, f"the graph has no adapter input {name}"),
        (inputs | {name: (5,)}, rf"{name} is \[32\]; the graph expects \[5\]"),
    ):
        with pytest.raises(AdapterMismatchError, match=words):
            load_adapter_file(path, base_fingerprint=base.fingerprint, inputs=changed)


def test_a_graph_whose_manifest_says_otherwise_than_the_graph_is_refused(
    exported: Callable[[str], BasePack], family_folder: Callable[[str], BasePack], tmp_path: Path
) -> None:
    from fedlora_serve.session import open_graph

    base = exported("llama-biases")
    graph = base.directory / "decoder.onnx"
    before = sidecar_of(graph).read_bytes()
    manifest = json.loads(before)
    manifest["slots"] = {name: list(shape) for name, shape in graph_inputs(base.model, "compat").items()}
    try:
        sidecar_of(graph).write_text(json.dumps(manifest))
        assert not check_graph_file(graph, base).takes_scales
        with pytest.raises(GraphError, match=r"is none of this base's graph; do not run this graph"):
            open_graph(base, ["decoder.onnx"])
    finally:
        sidecar_of(graph).write_bytes(before)


def test_a_vector_of_an_input_that_no_graph_scales_is_refused_with_what_to_do() -> None:
    base = family_pack("llama")
    adapter = adapter_of_kind("ia3", base)
    query, out = (f"model.layers.0.self_attn.{name}.ia3_l" for name in ("q_proj", "o_proj"))
    assert isinstance(base.model, DecoderShape) and base.model.num_heads > base.model.num_kv_heads
    for name in (query, out):
        with pytest.raises(AdapterError, match=r"its vector is of its input.*feedforward_modules.*--merge"):
            scaled_of(replace(adapter, extras={name: np.full((1, 64), 2, np.float32)}), base)


def test_what_the_values_are_scaled_by_scales_the_input_of_the_module_after_the_attention() -> None:
    base = encoder_pack("bert")
    module, values = base.model.module(0, "attention_output"), base.model.module(0, "value")  # type: ignore[union-attr]
    vector = np.linspace(1, 2, base.model.hidden_size, dtype=np.float32)
    mine = scaled_of(replace(adapter_of_kind("ia3", base), extras={f"{module}.ia3_l": vector[None]}), base)
    assert mine.extras.keys() == {f"{values}.output_scale"}
    np.testing.assert_array_equal(mine.extras[f"{values}.output_scale"], vector)


@pytest.mark.parametrize("kind", ["dora", "prompt"])
def test_what_a_kind_trains_is_not_written_as_an_input_of_a_graph(kind: str, tmp_path: Path) -> None:
    base = family_pack("llama")
    with pytest.raises(
        AdapterError, match=f"{BY_NAME[kind].title} as it trains is no input .*: fedlora export-adapter"
    ):
        write_onnx_adapter(adapter_of_kind(kind, base), base.fingerprint, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_operator_refuses_what_scales_an_input() -> None:
    base = encoder_pack("bert")
    inputs = scaled_of(adapter_of_kind("ia3", base), base).extras
    with pytest.raises(AdapterMismatchError, match="scales what modules give, and no module's input; use a graph of"):
        adapter_layout(inputs, base.model.linear_modules())


@pytest.mark.parametrize("arguments", [["--profile", "kernel"], ["--profile", "base"], ["--merge", "x", "-o", "y"]])
def test_the_option_is_refused_where_it_would_do_nothing(base: BasePack, arguments: list[str]) -> None:
    result = CliRunner().invoke(commands, ["export", str(base.directory), "--output-scales", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert "--output-scales is for the profiles compat, fast, rows" in str(result.exception)
