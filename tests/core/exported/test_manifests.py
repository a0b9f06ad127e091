"""What stands beside graphs and adapter files, and what is refused when the two disagree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, GraphError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.adapter_manifest import read_adapter_manifest
from fedlora.exported.graph_manifest import check_graph_file, read_graph_manifest, write_graph_manifest
from fedlora.exported.inputs import input_shapes, input_values, model_version
from fedlora.exported.profiles import PROFILES, graph_inputs, graph_name
from fedlora.exported.sidecar import sidecar_of
from fedlora.lora.config import LoraConfig
from fedlora_export.adapter_export import write_onnx_adapter

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import tree

UP = "model.layers.0.mlp.up_proj"
CONFIG = LoraConfig(
    rank=4, alpha=8.0, rank_pattern={UP: 2}, alpha_pattern={UP: 3.0}, target_modules=("up_proj", "q_proj")
)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def adapter_path(pack: BasePack, tmp_path: Path) -> Path:
    """A sound adapter file with its manifest, alone in their folder."""
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(adapter_on(CONFIG, pack.model.linear_modules()), pack.fingerprint, path, source="first")
    return path


@pytest.fixture
def graph(pack: BasePack, tmp_path: Path) -> Path:
    """A file with the manifest of a graph; what it holds is nobody's concern here."""
    path = tmp_path / "decoder.onnx"
    path.write_bytes(b"a graph")
    adapter_inputs = graph_inputs(pack.model, "compat")
    write_graph_manifest(
        path, base_fingerprint=pack.fingerprint, profile="compat", accuracy_level=4, inputs=adapter_inputs
    )
    return path


def load(pack: BasePack, path: Path, *, allow_unnamed_base: bool = False) -> Any:
    adapter_inputs = input_shapes(pack.model.linear_modules())
    return load_adapter_file(
        path, base_fingerprint=pack.fingerprint, inputs=adapter_inputs, allow_unnamed_base=allow_unnamed_base
    )


def rewrite(path: Path, change: Change) -> None:
    """Change the manifest beside a file."""
    values = json.loads(sidecar_of(path).read_text())
    change(values)
    sidecar_of(path).write_text(json.dumps(values))


def test_an_adapter_file_is_loaded_with_what_its_manifest_tells(pack: BasePack, adapter_path: Path) -> None:
    verified, expected = load(pack, adapter_path), adapter_on(CONFIG, pack.model.linear_modules())
    values = input_values(expected)
    assert verified.values.keys() == values.keys()
    assert all(np.array_equal(verified.values[name], values[name]) for name in values)
    manifest = verified.manifest
    assert (manifest.base, manifest.profile) == (pack.fingerprint, "compat")
    assert manifest.source == "first"
    assert manifest.lora == CONFIG
    assert manifest.ranks == {module: pair.rank for module, pair in expected.pairs.items()}
    assert manifest.inputs == {name: value.shape for name, value in values.items()}
    assert manifest.size_bytes == adapter_path.stat().st_size


def test_without_its_manifest_a_file_is_known_by_31_bits(pack: BasePack, adapter_path: Path) -> None:
    sidecar_of(adapter_path).unlink()
    assert read_adapter_manifest(adapter_path) is None
    assert load(pack, adapter_path).manifest is None


def test_a_base_that_agrees_in_31_bits_only_is_told_apart_by_the_manifest(pack: BasePack, adapter_path: Path) -> None:
    other = pack.fingerprint[:8] + "0" * 56
    assert model_version(other) == model_version(pack.fingerprint)
    adapter_inputs = input_shapes(pack.model.linear_modules())
    with pytest.raises(AdapterMismatchError, match=f"made for base {pack.fingerprint}, this base is {other}"):
        load_adapter_file(adapter_path, base_fingerprint=other, inputs=adapter_inputs)


def test_a_manifest_that_names_its_base_is_not_overruled_by_the_leave_to_take_unnamed_ones(
    pack: BasePack, adapter_path: Path
) -> None:
    rewrite(adapter_path, lambda values: values.update(base="1" * 64))
    with pytest.raises(AdapterMismatchError, match=f"made for base {'1' * 64}"):
        load(pack, adapter_path, allow_unnamed_base=True)


def test_a_flipped_bit_in_an_adapter_file_is_refused_by_its_digest(pack: BasePack, adapter_path: Path) -> None:
    data = bytearray(adapter_path.read_bytes())
    data[len(data) // 2] ^= 1
    adapter_path.write_bytes(data)
    with pytest.raises(AdapterError, match=r"its manifest says .*; the file is damaged: copy both again"):
        load(pack, adapter_path)


def test_an_adapter_file_that_is_written_again_brings_its_own_manifest(pack: BasePack, adapter_path: Path) -> None:
    again = adapter_on(LoraConfig(rank=1, target_modules=("v_proj",)), pack.model.linear_modules())
    write_onnx_adapter(again, pack.fingerprint, adapter_path)
    assert load(pack, adapter_path).values.keys() == input_values(again).keys()
    assert tree(adapter_path.parent).keys() == {"a.onnx_adapter", "a.onnx_adapter.json"}


def test_a_writer_that_dies_between_the_two_files_leaves_what_is_refused(pack: BasePack, adapter_path: Path) -> None:
    old = sidecar_of(adapter_path).read_bytes()
    write_onnx_adapter(adapter_on(CONFIG, pack.model.linear_modules(), seed=9), pack.fingerprint, adapter_path)
    sidecar_of(adapter_path).write_bytes(old)
    with pytest.raises(AdapterError, match="copy both again"):
        load(pack, adapter_path)


ADAPTER_DAMAGES: dict[str, tuple[Change, str]] = {
    "another format": (lambda v: v.update(format="x"), "format 'x', version 1; this fedlora reads fedlora-onnx-adapter"),
    "another version": (lambda v: v.update(version=2), "version 2; this fedlora reads"),
    "a field missing": (lambda v: v.pop("lora"), "expected the fields"),
    "a field too many": (lambda v: v.update(extra=1), "expected the fields"),
    "a size of words": (lambda v: v.update(size_bytes="many"), "size_bytes must be int, got 'many'"),
    "a digest that is none": (lambda v: v.update(sha256="00"), "sha256 is '00'; expected 64 hexadecimal digits"),
    "another digest": (lambda v: v.update(sha256="0" * 64), "the file is damaged"),
    "a shape of one size": (lambda v: v["slots"].update({f"{UP}.lora_A.weight": [3]}), "expected two sizes"),
    "a profile that is none": (lambda v: v.update(profile="rows"), "profile 'rows'; expected compat, fast: export the"),
    "another profile": (lambda v: v.update(profile="fast"), "made for profile fast, this graph is compat; export the"),
    "an adapter input missing": (lambda v: v["slots"].pop(f"{UP}.lora_A.weight"), "do not name the same modules"),
    "a module missing": (lambda v: v["ranks"].pop(UP), "do not name the same modules"),
    "a module too many": (lambda v: v["ranks"].update(v_proj=4), "do not name the same modules"),
    "another shape": (lambda v: v["slots"].update({f"{UP}.lora_A.weight": [9, 2]}), "slots are not those of the file"),
    "a shape of another rank": (
        lambda v: v["slots"].update({f"{UP}.lora_A.weight": [64, 9]}), f"'{UP}' has rank 9 and 2, ranks says 2"
    ),
    "another rank": (lambda v: v["ranks"].update({UP: 4}), f"ranks: '{UP}' is 4; lora says 2"),
    "an alpha of words": (lambda v: v["lora"].update(alpha="8"), "lora: alpha: an alpha must be a positive number"),
    "lora without alpha": (lambda v: v["lora"].pop("alpha"), "lora must have alpha, alpha_pattern"),
    "a pattern that is a list": (lambda v: v["lora"].update(rank_pattern=[]), "lora must have alpha"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTER_DAMAGES)
def test_a_manifest_that_is_not_sound_or_not_of_its_adapter_file_is_refused(
    pack: BasePack, adapter_path: Path, name: str
) -> None:
    change, words = ADAPTER_DAMAGES[name]
    rewrite(adapter_path, change)
    with pytest.raises(AdapterError, match=words) as caught:
        load(pack, adapter_path)
    assert str(adapter_path) in str(caught.value)


def test_a_file_larger_than_any_adapter_of_the_base_is_not_read(pack: BasePack, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    with path.open("wb") as file:
        file.truncate(2**33)  # a hole: it takes no room on the disk
    with pytest.raises(AdapterMismatchError, match="more than any adapter of this base has"):
        load(pack, path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_no_json_object_is_refused(
    pack: BasePack, adapter_path: Path, graph: Path, content: bytes
) -> None:
    sidecar_of(adapter_path).write_bytes(content)
    with pytest.raises(AdapterError, match=r"a\.onnx_adapter\.json: "):
        load(pack, adapter_path)
    sidecar_of(graph).write_bytes(content)
    with pytest.raises(GraphError, match=r"decoder\.onnx\.json: "):
        check_graph_file(graph, pack)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_manifest_of_a_graph_is_read_back_as_it_was_written(pack: BasePack, tmp_path: Path, profile: Any) -> None:
    adapter_inputs, graph = graph_inputs(pack.model, profile), tmp_path / graph_name(pack.model, profile)
    graph.write_bytes(b"a graph")
    path = write_graph_manifest(
        graph, base_fingerprint=pack.fingerprint, profile=profile, accuracy_level=1, inputs=adapter_inputs
    )
    assert path == graph.with_name(f"{graph.name}.json")
    manifest = check_graph_file(graph, pack)
    assert manifest == read_graph_manifest(graph)
    assert (manifest.graph, manifest.profile, manifest.accuracy_level) == (graph.name, profile, 1)
    assert manifest.inputs == adapter_inputs


GRAPH_DAMAGES: dict[str, tuple[Change, str]] = {
    "another base": (lambda v: v.update(base="2" * 64), f"made for base {'2' * 64}, the pack is "),
    "another digest": (lambda v: v.update(sha256="0" * 64), "sha256 is .*, its manifest says 0000"),
    "another size": (lambda v: v.update(size_bytes=8), "7 bytes, its manifest says 8"),
    "another graph": (lambda v: v.update(graph="../x.onnx"), "of a graph '../x.onnx', beside decoder.onnx"),
    "a profile that is none": (
        lambda v: v.update(profile="x"),
        "profile 'x'; expected compat, fast, rows, kernel, base",
    ),
    "another profile": (
        lambda v: v.update(profile="rows"),
        r"of profile rows, which is written as decoder\.rows\.onnx",
    ),
    "an adapter input missing": (lambda v: v["slots"].popitem(), "is missing, the base's is"),
    "a size that is true": (lambda v: v.update(size_bytes=True), "size_bytes must be int, got True"),
}


@pytest.mark.parametrize("name", GRAPH_DAMAGES)
def test_a_manifest_that_is_not_of_its_graph_is_refused(pack: BasePack, graph: Path, name: str) -> None:
    change, words = GRAPH_DAMAGES[name]
    rewrite(graph, change)
    with pytest.raises(GraphError, match=words):
        check_graph_file(graph, pack)


def test_a_graph_without_a_manifest_and_a_manifest_without_its_graph_are_refused(pack: BasePack, graph: Path) -> None:
    text = sidecar_of(graph).read_bytes()
    sidecar_of(graph).unlink()
    with pytest.raises(GraphError, match=r"decoder\.onnx\.json: no such file; write the graph and its manifest with"):
        check_graph_file(graph, pack)
    sidecar_of(graph).write_bytes(text)
    graph.unlink()
    with pytest.raises(GraphError, match=r"decoder\.onnx: no such file; write it with: fedlora export"):
        check_graph_file(graph, pack)
