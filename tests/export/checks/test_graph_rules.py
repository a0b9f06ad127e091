"""What a graph may hold: those of every family and profile pass, and one that was changed in any one place does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
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
from fedlora.graph.build import build_graph
from fedlora.graph.graph_check import read_checked_graph
from fedlora.graph.rotary import MOST_NUMBERS
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.checks.verify import verify_folder
from fedlora_export.export import export_base
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import BARE, EVERY, encoder_pack
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
        accuracy_level=manifest.accuracy_level,
        inputs=manifest.inputs,
    )


def with_profiles(names: Iterable[str]) -> list[tuple[str, tuple[Profile, Profile]]]:
    """Each name with two profiles, other ones than those before it: an export compares every graph that it writes."""
    profiles = cycle(PROFILES)
    return [(name, (next(profiles), next(profiles))) for name in names]


@pytest.mark.parametrize(("name", "profiles"), with_profiles(FAMILIES))
def test_every_family_and_profile_keeps_the_rules(tmp_path: Path, name: str, profiles: tuple[Profile, Profile]) -> None:
    written = export_base(family_pack(name), tmp_path / "model", profiles=profiles)
    assert len(written) == len(profiles)
    assert len(list(verify_folder(tmp_path / "model"))) == 2 + 2 * len(profiles)


@pytest.mark.parametrize(("name", "profiles"), with_profiles(VARIANTS))
def test_every_way_to_store_a_weight_keeps_the_rules(
    packs: Packs, tmp_path: Path, name: str, profiles: tuple[Profile, Profile]
) -> None:
    export_base(packs(VARIANTS[name]), tmp_path / "model", profiles=profiles)
    assert len(list(verify_folder(tmp_path / "model"))) == 2 + 2 * len(profiles)


@pytest.mark.parametrize(("name", "profiles"), with_profiles(EVERY))
def test_every_encoder_and_profile_keeps_the_rules(
    tmp_path: Path, name: str, profiles: tuple[Profile, Profile]
) -> None:
    export_base(encoder_pack(name), tmp_path / "model", profiles=profiles)
    base = open_pack(tmp_path / "model")
    write_onnx_adapter(random_adapter(base), base.fingerprint, tmp_path / "model" / "a.onnx_adapter")
    assert len(list(verify_folder(tmp_path / "model"))) == 3 + 2 * len(profiles)


def test_an_encoder_with_modules_keeps_the_rules(tmp_path: Path) -> None:
    export_base(encoder_with_modules(tmp_path / "modules"), tmp_path / "model", profiles=PROFILES)
    assert len(list(verify_folder(tmp_path / "model"))) == 2 + 2 * len(PROFILES)


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


def read_another(model: Model) -> None:
    node = model.graph.node[-1]
    node.input[0] = model.graph.node[0].output[0]


def other_number(model: Model) -> None:
    """A block of no size, which divides by zero."""
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    next(each for each in node.attribute if each.name == "block_size").i = 0


def set_fixed_rank(model: Model) -> None:
    next(value for value in model.graph.input if value.name == SLOT).type.tensor_type.shape.dim[1].dim_value = 4


CHANGES: dict[str, tuple[Callable[[Model], object], str]] = {
    "an operation that loops": (add_node("Loop"), "node 'new' is '' 'Loop', which the exporter does not write here"),
    "an operation of another domain": (add_node("Add", "evil"), "node 'new' is 'evil' 'Add'"),
    "an operation that reads files": (add_node("ImageDecoder"), "'ImageDecoder'"),
    "an operation of another profile": (add_node("RowLora", "fedlora"), "node 'new' is 'fedlora' 'RowLora'"),
    "one more of a known operation": (add_node("Neg"), "node 'new' is none of this base's graph"),
    "a node twice": (lambda m: m.graph.node.append(m.graph.node[0]), "is there twice"),
    "a node missing": (lambda m: m.graph.node.pop(), "node '.*' is missing"),
    "a node that reads another value": (read_another, "is of inputs .*; expected"),
    "another number in a node": (other_number, "is of attributes .*; expected"),
    "a subgraph in a known operation": (subgraph, "an attribute has graph; expected what the exporter writes"),
    "a function": (function, "it has functions; expected what the exporter writes"),
    "training": (lambda m: m.training_info.add(), "it has training_info"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.add(), "its graph has sparse_initializers"),
    "another IR version": (lambda m: setattr(m, "ir_version", 9), "IR version 9, expected 11"),
    "another operator set": (lambda m: setattr(m.opset_import[0], "version", 9), "operator sets .*: 9.*; expected"),
    "a set of another domain": (lambda m: m.opset_import.add(domain="evil", version=1), "operator sets .*'evil'"),
    "a set twice": (lambda m: m.opset_import.append(m.opset_import[0]), "an operator set is named twice"),
    "another base": (
        lambda m: setattr(m.metadata_props[0], "value", "x"),
        "properties .*'x'.*; expected those of this",
    ),
    "options of the runtime": (
        lambda m: m.metadata_props.add(key="ort_config", value='{"session_options": {"inter_op_num_threads": 999}}'),
        "properties .*ort_config.*; expected those of this pack",
    ),
    "another file": (external(location="other.bin"), "is of content .*other.bin.*; expected .*model.safetensors"),
    "a path upwards": (external(location="../model.safetensors"), r"is of content .*\.\./model.safetensors"),
    "an absolute path": (external(location="/etc/passwd"), "is of content .*/etc/passwd"),
    "an offset of words": (external(offset="-8"), "offset is '-8', not a number of bytes"),
    "an offset in two ways": (external(offset="007"), "offset is '007', not a number of bytes"),
    "an offset beyond the end": (shifted("offset", 10**9), "is of content"),
    "an offset into the header": (external(offset="0"), "is of content .*offset=0"),
    "an offset within a tensor": (shifted("offset", 4), "is of content"),
    "a length within a tensor": (shifted("length", -4), "is of content"),
    "a shape of other bytes": (lambda m: initializer(m).dims.append(2), "is of dims"),
    "a negative shape": (lambda m: initializer(m).dims.__setitem__(0, -1), "is of dims"),
    "a shape of 2^40": (lambda m: initializer(m).dims.__setitem__(0, 1 << 40), "is of dims"),
    "another dtype": (lambda m: setattr(initializer(m), "data_type", 7), "is of dtype 7; expected"),
    "a checksum": (
        lambda m: initializer(m).external_data.add(key="checksum", value="0"),
        "of its bytes, not location, offset, length",
    ),
    "values beside a place": (lambda m: setattr(initializer(m), "raw_data", b"x"), "has both values and a place"),
    "texts as values": (lambda m: initializer(m, external=False).string_data.append(b"x"), "has string_data"),
    "an initializer twice": (lambda m: m.graph.initializer.append(initializer(m)), "initializer .* is there twice"),
    "a weight inside": (large_constant, "initializer 'large' is none of this base's graph"),
    "other values inside": (lambda m: setattr(initializer(m, external=False), "raw_data", b"x" * 8), "is of content"),
    "a weight inside a node": (constant_node, "an attribute has tensor"),
    "a file in a node": (hidden_external, "an attribute has tensor"),
    "an adapter that is always on": (
        lambda m: default_of(m, np.ones((64, 4), np.float32)),
        r"q_proj\.lora_A\.weight' is of dims \(64, 4\); expected \(64, 0\)",
    ),
    "an adapter input missing": (without_input, "input .*q_proj.lora_A.weight' is missing"),
    "an adapter input of one rank": (set_fixed_rank, r"q_proj\.lora_A\.weight' is of shape \(64, 4\); expected"),
    "an input more": (lambda m: m.graph.input.add(name="more"), "input 'more' is none of this base's graph"),
    "an output more": (lambda m: m.graph.output.add(name="more"), "output 'more' is none of this base's graph"),
    "a value of another shape": (lambda m: m.graph.value_info.add(name="logits"), "description 'logits' is none of"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_was_changed_is_refused_though_its_manifest_agrees(own_folder: Path, name: str) -> None:
    change, words = CHANGES[name]
    for other in own_folder.glob("decoder.*.onnx"):  # each would be compared before it
        other.unlink()
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
    with pytest.raises(GraphError, match=r"decoder\.onnx: (not an ONNX graph|IR version 0|it has|producer_name of it)"):
        list(verify_folder(own_folder))


@pytest.mark.parametrize("graph", ["decoder.onnx", "decoder.fast.onnx", "decoder.rows.onnx", "decoder.kernel.onnx"])
def test_the_graph_of_one_profile_is_none_of_another(exported_folder: Path, graph: str) -> None:
    base, own = open_pack(exported_folder), read_graph_manifest(exported_folder / graph).profile
    for profile in PROFILES:
        with pytest.raises(GraphError, match="export it again") if profile != own else nullcontext():
            assert read_checked_graph(exported_folder / graph, base, profile, 4).facts.nodes > 0


@pytest.mark.parametrize("level", [-1, 5, 1 << 40])
def test_a_level_of_accuracy_that_the_runtime_has_not_is_refused(exported_folder: Path, level: int) -> None:
    with pytest.raises(GraphError, match=f"accuracy level {level}; expected 0 to 4"):
        read_checked_graph(exported_folder / "decoder.onnx", open_pack(exported_folder), "compat", level)


def message(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds a message."""
    size, length = len(content), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (message(7, message(1, b"") * 100_000), r"its graph has more than \d+ parts"),
        (message(7, message(13, b"") * 100_000), r"its graph has more than \d+ parts"),
        (b"\x08\x0b" + b"\x08\x0b", "it has ir_version twice"),
        (b"\x08\x8b\x00", "a number that is cut off, or longer than it needs to be"),
        (b"\x08" + b"\xff" * 11, "a number that is cut off, or longer than it needs to be"),
        (b"\x0b", "it has a field of wire type 3"),
        (b"\x3a\x7f", "it ends within a field"),
        (b"\xa2\x01\x00", "it has training_info"),
        (b"\xfa\x7f\x00", "it has a field of number 2047"),
        (b"\x12\x01\xff", "producer_name of it is not UTF-8"),
        (b"\0" * (8 << 20), "File too large|more than"),
    ],
)
def test_what_a_reader_might_choke_on_is_refused(own_folder: Path, content: bytes, words: str) -> None:
    (own_folder / "decoder.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=words) as caught:
        read_checked_graph(own_folder / "decoder.onnx", open_pack(own_folder), "compat", 4)
    assert str(caught.value).endswith("export it again")


def test_a_base_whose_tables_of_positions_would_fill_the_memory_has_no_graph(exported_folder: Path) -> None:
    base = open_pack(exported_folder)
    most = MOST_NUMBERS // len(base.shape.rotary.frequencies)
    for positions in (most, most + 1):
        large = replace(base, model=replace(base.shape, max_positions=positions))
        with pytest.raises(GraphError, match="lower max_position_embeddings") if positions > most else nullcontext():
            build_graph(large, "compat", 4)
