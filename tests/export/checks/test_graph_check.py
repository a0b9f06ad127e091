"""A check that cannot fail is worthless: graphs that are wrong in one place, and what becomes of their files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fedlora_export.checks.graph_runs as graph_runs_module
import fedlora_export.checks.torch_logits as torch_logits_module
import numpy as np
import onnx_ir as ir
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import ConfigError, GraphError
from fedlora.exported.inputs import input_values
from fedlora.graph.adapter_inputs import ModuleInputs
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora_export.checks.check import check_graph
from fedlora_export.checks.torch_logits import torch_logits
from fedlora_export.export import export_base

from tests.export.checks.sabotage import Patch, Sabotage, change_nodes, set_attribute, swap_inputs, swap_modules
from tests.tiny.adapters import changed
from tests.tiny.llamas import DEFAULT, VARIANTS, Packs, Variant

FUSED_ROTARY = VARIANTS["4-bit-asymmetric-untied-mha-head16"]


def swap_keys_and_values(node: ir.Node) -> None:
    if node.op_type == "GroupQueryAttention":
        key, value = node.inputs[1], node.inputs[2]
        node.replace_input_with(1, value)
        node.replace_input_with(2, key)


def leave_out_the_adapter(node: ir.Node) -> None:
    """The last down_proj gives its base's product alone."""
    if node.name == "model.layers.1.mlp.down_proj.out":
        node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.0)


def forget_the_cache(node: ir.Node) -> None:
    """Every step begins at position 0."""
    if node.name == "every_position":
        node.replace_input_with(0, node.inputs[1])


def drop_the_scaling(patch: Patch) -> None:
    """The adapter's scaling, which the exporter folds into B, is left out."""

    def unscaled(adapter: Adapter) -> dict[str, Any]:
        factors = {name: adapter.config.scaling_of(name) for name in adapter.pairs}
        assert set(factors.values()) != {1.0}
        return {
            name: value / np.float32(factors[name.rsplit(".lora_B", 1)[0]]) if ".lora_B" in name else value
            for name, value in input_values(adapter).items()
        }

    patch.setattr(graph_runs_module, "input_values", unscaled)


SABOTAGES: dict[str, Sabotage] = {
    "k-and-v-swapped": swap_modules(ModuleInputs, "k_proj", "v_proj"),
    "gate-and-up-swapped": swap_modules(ModuleInputs, "gate_proj", "up_proj"),
    "adapter_inputs-of-k-and-v-swapped": swap_inputs("k_proj", "v_proj"),
    "adapter_inputs-of-gate-and-up-swapped": swap_inputs("gate_proj", "up_proj"),
    "keys-and-values-swapped-in-the-attention": change_nodes(swap_keys_and_values),
    "scaling-dropped": drop_the_scaling,
    "adapter-of-one-module-left-out": change_nodes(leave_out_the_adapter),
    "norms-with-a-wrong-epsilon": set_attribute("SkipSimplifiedLayerNormalization", "epsilon", 1e-2),
    "fewer-key-heads": set_attribute("GroupQueryAttention", "kv_num_heads", 2),
    "first-norm-with-a-wrong-epsilon": set_attribute("RMSNormalization", "epsilon", 0.1),
}
ROTARY_SABOTAGES: dict[str, tuple[Variant, Sabotage]] = {
    "interleaved-rotary": (DEFAULT, set_attribute("RotaryEmbedding", "interleaved", 1)),
    "positions-without-the-cache": (DEFAULT, change_nodes(forget_the_cache)),
    "no-fused-rotary": (FUSED_ROTARY, set_attribute("GroupQueryAttention", "do_rotary", 0)),
}
ALL = {name: (DEFAULT, sabotage) for name, sabotage in SABOTAGES.items()} | ROTARY_SABOTAGES


def files_of(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def good(packs: Packs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    """The folder of a variant with the graph that belongs to it: to be copied."""
    return cache(lambda variant: export_base(packs(variant), tmp_path_factory.mktemp("good") / "model")[0].path.parent)


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_graph_is_caught_and_the_good_one_stays(
    good: Callable[[Variant], Path], tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    variant, sabotage = ALL[name]
    shutil.copytree(good(variant), tmp_path / "model")
    before = files_of(tmp_path)
    sabotage(monkeypatch)
    with pytest.raises(GraphError, match=r"decoder\.onnx.*(differ|does not run|does not load|not finite)"):
        export_base(open_pack(tmp_path / "model"))
    assert files_of(tmp_path) == before


def test_a_wrong_graph_leaves_no_file(packs: Packs, tmp_path: Path, monkeypatch: Patch) -> None:
    variant, sabotage = ALL["k-and-v-swapped"]
    base = packs(variant)
    graph = export_base(base, tmp_path / "model")[0].path
    own = open_pack(graph.parent)
    before = files_of(tmp_path)
    sabotage(monkeypatch)
    with pytest.raises(GraphError, match=r"decoder\.onnx.*(differ|does not run|does not load|not finite)"):
        export_base(own)
    assert files_of(tmp_path) == before  # the graph that was good is still there
    graph.unlink()
    with pytest.raises(GraphError):
        export_base(own)
    assert not graph.exists()
    with pytest.raises(GraphError):
        export_base(base, tmp_path / "new")
    before.pop(str(graph))
    assert files_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    export_base(own)  # without the sabotage the same pack is fine


def test_without_a_reference_the_graph_must_still_run(packs: Packs, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch_logits_module, "find_reference", lambda: None)
    (graph,) = export_base(packs(DEFAULT), tmp_path / "model")
    assert graph.exact is graph.as_written is None
    assert graph.path.is_file()
    set_attribute("GroupQueryAttention", "kv_num_heads", 2)(monkeypatch)
    with pytest.raises(GraphError):
        export_base(packs(DEFAULT), tmp_path / "other")


def test_a_file_that_is_no_graph_is_refused(packs: Packs, tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(GraphError, match="ONNX Runtime does not load it"):
        check_graph(tmp_path / "decoder.onnx", packs(DEFAULT), None)


def test_logits_that_are_not_finite_are_refused(packs: Packs, tmp_path: Path, monkeypatch: Patch) -> None:
    def infinite(base: BasePack, generator: np.random.Generator) -> Adapter:
        return changed(original(base, generator), lambda module, lora_A, lora_B: (lora_A, np.full_like(lora_B, 1e37)))

    original = torch_logits_module._random_adapter
    monkeypatch.setattr(torch_logits_module, "_random_adapter", infinite)
    with pytest.raises(GraphError, match=r"the logits \(adapter\) are not finite"):
        export_base(packs(DEFAULT), tmp_path / "model")


def test_a_folder_of_its_own_is_complete_and_opens_as_the_same_base(packs: Packs, tmp_path: Path) -> None:
    base = packs(VARIANTS["8-bit-asymmetric-tied-mha-head8"])
    before = files_of(base.directory)
    (exported,) = export_base(base, tmp_path / "deep" / "model", accuracy_level=FLOAT_ACCURACY)
    graph = exported.path
    assert exported.exact == exported.as_written
    assert graph == tmp_path / "deep" / "model" / "decoder.onnx"
    mine = {file.name: file.read_bytes() for file in graph.parent.iterdir()}
    for name in ("decoder.onnx", "decoder.onnx.json", "genai_config.json", "tokenizer_config.json"):
        del mine[name]
    assert mine == {file.name: file.read_bytes() for file in base.directory.iterdir()}
    copied = open_pack(graph.parent)
    assert copied.fingerprint == base.fingerprint
    assert check_graph(graph, copied, torch_logits(copied)) == exported.exact
    assert files_of(base.directory) == before


def test_an_output_that_exists_is_refused_unless_it_may_be_replaced(packs: Packs, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"model exists already; name another output, or pass --force"):
        export_base(packs(DEFAULT), target)
    assert files_of(tmp_path).keys() == {str(target / "precious.txt")}
    with pytest.raises(ConfigError, match=r"holds no base\.json: only its own kind is replaced"):
        export_base(packs(DEFAULT), target, replace=True)
    assert files_of(tmp_path).keys() == {str(target / "precious.txt")}
    (target / "precious.txt").unlink()
    for _ in range(2):  # an empty folder, and then one of its own
        export_base(packs(DEFAULT), target, replace=True)
        assert (target / "decoder.onnx").is_file()
