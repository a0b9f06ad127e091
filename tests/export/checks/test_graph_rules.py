"""What a graph may hold: those of every family and profile pass, and one that was changed in any one place does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.errors import GraphError
from fedlora.exported.graph_manifest import read_graph_manifest, write_graph_manifest
from fedlora.exported.profiles import PROFILES, Profile
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.checks.graph_rules import ALLOWED_OPS, check_graph_rules
from fedlora_export.checks.verify import verify_folder
from fedlora_export.export import build_graph, export_base
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import BARE, EVERY, encoder_pack, save_encoder_pack
from tests.tiny.families import FAMILIES, family_pack
from tests.tiny.llamas import VARIANTS, Packs
from tests.tiny.packs import checkpoint_of
from tests.tiny.sentences import write_modules

Model = Any  # an onnx.ModelProto: its fields are made when it runs
SLOT = "model.layers.0.self_attn.q_proj.lora_A.weight"


def sign(graph: Path, base: BasePack) -> None:
    """Write the manifest of a graph that was changed, as one who wants it to pass would."""
    manifest = read_graph_manifest(graph)
    write_graph_manifest(
        graph,
        base_fingerprint=base.fingerprint,
        profile=manifest.profile,
        accuracy_level=0,
        inputs=manifest.inputs,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_and_profile_keeps_the_rules(tmp_path: Path, name: str) -> None:
    written = export_base(family_pack(name), tmp_path / "model", profiles=PROFILES)
    assert len(written) == len(PROFILES)
    assert len(list(verify_folder(tmp_path / "model"))) == 2 + 2 * len(PROFILES)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_store_a_weight_keeps_the_rules(packs: Packs, tmp_path: Path, name: str) -> None:
    export_base(packs(VARIANTS[name]), tmp_path / "model", profiles=PROFILES)
    assert len(list(verify_folder(tmp_path / "model"))) == 2 + 2 * len(PROFILES)


@pytest.mark.parametrize("name", EVERY)
def test_every_encoder_and_profile_keeps_the_rules(tmp_path: Path, name: str) -> None:
    export_base(save_encoder_pack(name, tmp_path / "pack"), tmp_path / "model", profiles=PROFILES)
    base = open_pack(tmp_path / "model")
    write_onnx_adapter(random_adapter(base), base.fingerprint, tmp_path / "model" / "a.onnx_adapter")
    assert len(list(verify_folder(tmp_path / "model"))) == 3 + 2 * len(PROFILES)


def test_every_allowed_operation_is_in_some_graph(packs: Packs, tmp_path: Path) -> None:
    bases = [
        *(packs(variant) for variant in VARIANTS.values()),
        *(family_pack(name) for name in FAMILIES),
        *(save_encoder_pack(name, tmp_path / name.replace(" ", "-")) for name in EVERY),
        encoder_with_modules(tmp_path / "modules"),
    ]
    used = {
        (node.domain, node.op_type)
        for base in bases
        for profile in PROFILES
        for node in build_graph(base, profile, 4).graph
    }
    assert used == {(domain, kind) for domain, kinds in ALLOWED_OPS.items() for kind in kinds}


def encoder_with_modules(folder: Path) -> BasePack:
    """An encoder whose vectors are divided by the root of a text's length, as one of its modules says."""
    encoder = encoder_pack(next(iter(BARE)))
    shutil.copytree(checkpoint_of(encoder.directory), folder / "checkpoint")
    write_modules(folder / "checkpoint", pooling={"pooling_mode": "mean_sqrt_len_tokens"})
    make_pack(folder / "checkpoint", folder / "pack", encoder.quantization)
    return open_pack(folder / "pack")


def initializer(model: Model, *, external: bool = True) -> Any:
    """The first initializer outside, or inside, the graph."""
    inputs = {value.name for value in model.graph.input}
    return next(
        tensor
        for tensor in model.graph.initializer
        if (tensor.data_location == TensorProto.EXTERNAL) == external and tensor.name not in inputs
    )


def external(**changes: str) -> Callable[[Model], None]:
    """Change the place of the first external initializer."""

    def change(model: Model) -> None:
        for entry in initializer(model).external_data:
            entry.value = changes.get(entry.key, entry.value)

    return change


def shifted(key: str, bytes_: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for entry in initializer(model).external_data:
            if entry.key == key:
                entry.value = str(int(entry.value) + bytes_)

    return change


def add_node(kind: str, domain: str = "", **attributes: Any) -> Callable[[Model], object]:
    return lambda model: model.graph.node.append(
        helper.make_node(kind, [model.graph.output[0].name], ["new"], name="new", domain=domain, **attributes)
    )


def large_constant(model: Model) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(20_000, np.float32), "large"))


def constant_node(model: Model) -> None:
    node = model.graph.node.add(op_type="Neg", name="large", output=["large"])
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(20_000, np.float32))))


def hidden_external(model: Model) -> None:
    tensor = TensorProto(name="x", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = model.graph.node.add(op_type="Neg", name="new", output=["x"])
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))


def subgraph(model: Model) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))


def function(model: Model) -> None:
    model.functions.append(helper.make_function("", "Add", ["a"], ["b"], [], []))


def default_of(model: Model, array: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == SLOT:
            tensor.CopyFrom(numpy_helper.from_array(array, SLOT))


def without_input(model: Model) -> None:
    model.graph.input.remove(next(value for value in model.graph.input if value.name == SLOT))


def set_fixed_rank(model: Model) -> None:
    next(value for value in model.graph.input if value.name == SLOT).type.tensor_type.shape.dim[1].dim_value = 4


CHANGES: dict[str, tuple[Callable[[Model], object], str]] = {
    "an operation that loops": (add_node("Loop"), "node 'new' is '' 'Loop', which the exporter does not write"),
    "an operation of another domain": (add_node("Add", "evil"), "node 'new' is 'evil' 'Add'"),
    "an operation that reads files": (add_node("ImageDecoder"), "'ImageDecoder'"),
    "a subgraph in a known operation": (subgraph, "attribute 'body' is a GRAPH"),
    "a function": (function, "it has functions"),
    "another IR version": (lambda m: setattr(m, "ir_version", 9), "IR version 9, expected 11"),
    "another operator set": (lambda m: setattr(m.opset_import[0], "version", 9), "of version 9, expected"),
    "a set of another domain": (lambda m: m.opset_import.add(domain="evil", version=1), "operator set 'evil'"),
    "a set twice": (lambda m: m.opset_import.append(m.opset_import[0]), "an operator set is named twice"),
    "another base": (lambda m: setattr(m.metadata_props[0], "value", "x"), "made for base x, the pack is"),
    "another file": (external(location="other.bin"), "lies in 'other.bin'; expected model.safetensors"),
    "a path upwards": (external(location="../model.safetensors"), r"lies in '\.\./model.safetensors'"),
    "an absolute path": (external(location="/etc/passwd"), "lies in '/etc/passwd'"),
    "an offset of words": (external(offset="-8"), "offset is '-8'; expected a number"),
    "an offset beyond the end": (shifted("offset", 10**9), "are no tensors of model.safetensors"),
    "an offset into the header": (external(offset="0"), "are no tensors of model.safetensors"),
    "an offset within a tensor": (shifted("offset", 4), "are no tensors of model.safetensors"),
    "a length within a tensor": (shifted("length", -4), "are no tensors of model.safetensors"),
    "a shape of other bytes": (lambda m: initializer(m).dims.append(2), "bytes long"),
    "a negative shape": (lambda m: initializer(m).dims.__setitem__(0, -1), "is of type"),
    "another dtype": (lambda m: setattr(initializer(m), "data_type", 7), "is of type 7"),
    "a checksum": (
        lambda m: initializer(m).external_data.add(key="checksum", value="0"),
        "expected location, offset and",
    ),
    "values beside a place": (
        lambda m: setattr(initializer(m), "raw_data", b"x"),
        "has more than a name, a shape and a place",
    ),
    "an initializer twice": (lambda m: m.graph.initializer.append(initializer(m)), "name appears twice"),
    "a weight inside": (large_constant, "constant 'large' has"),
    "a weight inside a node": (constant_node, "constant '' has"),
    "a file in a node": (hidden_external, "constant 'x' has .* or lies outside the graph"),
    "an adapter that is always on": (
        lambda m: default_of(m, np.ones((64, 4), np.float32)),
        r"has a default of \[64, 4\]",
    ),
    "an adapter input missing": (without_input, "is an adapter input of the graph or of the base, not of both"),
    "an adapter input of one rank": (set_fixed_rank, r"q_proj\.lora_A\.weight is \[64, 4\]"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_was_changed_is_refused_though_its_manifest_agrees(own_folder: Path, name: str) -> None:
    change, words = CHANGES[name]
    graph, base = own_folder / "decoder.onnx", open_pack(own_folder)
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=r"decoder\.onnx: .*, its manifest says"):
        list(verify_folder(own_folder))
    sign(graph, base)
    with pytest.raises(GraphError, match=words) as caught:
        list(verify_folder(own_folder))
    assert str(caught.value).startswith(str(graph))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_a_file_that_is_no_graph_is_refused(own_folder: Path, content: bytes) -> None:
    (own_folder / "decoder.onnx").write_bytes(content)
    sign(own_folder / "decoder.onnx", open_pack(own_folder))
    with pytest.raises(GraphError, match=r"decoder\.onnx: (not an ONNX graph|IR version 0)"):
        list(verify_folder(own_folder))


def test_rules_of_one_profile_are_not_those_of_another(exported_folder: Path) -> None:
    base = open_pack(exported_folder)
    graphs: dict[Profile, str] = {"compat": "decoder.onnx", "fast": "decoder.fast.onnx", "rows": "decoder.rows.onnx"}
    for profile in PROFILES:
        with pytest.raises(GraphError, match="operator set 'fedlora'") if profile != "kernel" else nullcontext():
            check_graph_rules(exported_folder / "decoder.kernel.onnx", base, profile)
        for own, graph in graphs.items():
            if own == profile:
                assert check_graph_rules(exported_folder / graph, base, profile).adapter_inputs > 0
            else:
                with pytest.raises(GraphError, match=r"adapter input|input adapters"):
                    check_graph_rules(exported_folder / graph, base, profile)
