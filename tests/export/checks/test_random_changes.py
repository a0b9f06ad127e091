"""Graphs that were changed at random, in their parts or their bytes: one that passes is, to protobuf's own reader, the
graph that the exporter wrote."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from fedlora.base.pack import open_pack
from fedlora.errors import GraphError
from fedlora.exported.graph_manifest import read_graph_manifest
from fedlora.graph.graph_check import read_checked_graph
from fedlora_export.checks.verify import verify_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper

from tests.fuzz.mutations import damaged_bytes
from tests.serve.changed_graphs import change_graph

Model = Any  # an onnx.ModelProto: its fields are made when it runs
OPERATIONS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
GRAPHS = ("decoder.onnx", "decoder.fast.onnx", "decoder.rows.onnx", "decoder.kernel.onnx", "decoder.base.onnx")
TEXTS = ("", "x", "\0", "logits", "input_ids", "../model.safetensors", "/dev/zero", "base.json", "é" * 300)
NUMBERS = (0, 1, -1, 7, 2**31, 2**40, 2**62, -(2**63))


def of(chance: random.Random, values: Any) -> Any:
    """One of them; None where there is none."""
    return chance.choice(list(values)) if len(values) else None


def other_operation(model: Model, chance: random.Random) -> None:
    of(chance, model.graph.node).op_type = chance.choice(OPERATIONS)


def other_domain(model: Model, chance: random.Random) -> None:
    of(chance, model.graph.node).domain = chance.choice(("", "com.microsoft", "fedlora", "evil"))


def more_operations(model: Model, chance: random.Random) -> None:
    names = [name for node in model.graph.node for name in node.output if name]
    for i in range(chance.choice((1, 2, 40))):
        inputs = [chance.choice(names) for _ in range(chance.randrange(4))]
        place = chance.randrange(len(model.graph.node) + 1)
        kind = chance.choice((chance.choice(OPERATIONS), model.graph.node[0].op_type))
        model.graph.node.insert(place, helper.make_node(kind, inputs, [f"more{i}"], name=f"more{i}"))


def fewer_operations(model: Model, chance: random.Random) -> None:
    del model.graph.node[chance.randrange(len(model.graph.node))]


def moved_operation(model: Model, chance: random.Random) -> None:
    node = model.graph.node.pop(chance.randrange(len(model.graph.node)))
    model.graph.node.insert(chance.randrange(len(model.graph.node) + 1), node)


def doubled_part(model: Model, chance: random.Random) -> None:
    parts = chance.choice((model.graph.node, model.graph.initializer, model.graph.input, model.graph.output))
    parts.append(of(chance, parts))


def other_wire(model: Model, chance: random.Random) -> None:
    node = of(chance, model.graph.node)
    names = chance.choice((node.input, node.output))
    if names:
        values = [name for each in model.graph.node for name in (*each.input, *each.output)]
        names[chance.randrange(len(names))] = chance.choice((*TEXTS, chance.choice(values)))


def other_attribute(model: Model, chance: random.Random) -> None:
    node = of(chance, [node for node in model.graph.node if node.attribute])
    attribute = of(chance, node.attribute)
    attribute.i = chance.choice(NUMBERS)
    if chance.random() < 0.5:
        attribute.type = chance.randrange(15)
    if chance.random() < 0.2:
        attribute.name = chance.choice(TEXTS)


def added_attribute(model: Model, chance: random.Random) -> None:
    inner = helper.make_graph([helper.make_node(chance.choice(OPERATIONS), ["a"], ["b"])], "g", [], [])
    value = chance.choice(
        (1, 0.5, "text", [1, 2], [0.5], ["a"], inner, [inner], helper.make_tensor("t", 1, [1], [1.0]))
    )
    of(chance, model.graph.node).attribute.append(helper.make_attribute(chance.choice(("body", "axis", "K")), value))


def other_place(model: Model, chance: random.Random) -> None:
    tensor = of(chance, [one for one in model.graph.initializer if one.external_data])
    entry = of(chance, tensor.external_data)
    text = entry.value
    entry.value = chance.choice((*TEXTS, *map(str, NUMBERS), f"0{text}", f"+{text}", f" {text}", f"{text}.0"))
    if chance.random() < 0.2:
        tensor.external_data.add(key=chance.choice(("location", "checksum", "x")), value="0")


def other_tensor(model: Model, chance: random.Random) -> None:
    tensor = of(chance, model.graph.initializer)
    match chance.randrange(6):
        case 0:
            tensor.dims.append(chance.choice(NUMBERS))
        case 1:
            tensor.data_type = chance.randrange(24)
        case 2:
            tensor.raw_data = damaged_bytes(tensor.raw_data or b"12345678", chance)
        case 3:
            tensor.data_location = chance.choice((TensorProto.DEFAULT, TensorProto.EXTERNAL))
        case 4:
            tensor.string_data.append(b"x" * 100)
        case _:
            tensor.name = chance.choice((*TEXTS, of(chance, model.graph.input).name))


def other_signature(model: Model, chance: random.Random) -> None:
    value = of(chance, chance.choice((model.graph.input, model.graph.output, model.graph.value_info)) or [None])
    if value is None:
        return
    dim = value.type.tensor_type.shape.dim
    if chance.random() < 0.5 and dim:
        of(chance, dim).dim_value = chance.choice(NUMBERS)
    elif chance.random() < 0.5:
        value.type.tensor_type.elem_type = chance.randrange(24)
    else:
        dim.add(dim_param="batch")


def around_it(model: Model, chance: random.Random) -> None:
    match chance.randrange(7):
        case 0:
            model.ir_version = chance.randrange(14)
        case 1:
            model.opset_import.add(domain=chance.choice(("", "evil", "com.microsoft")), version=chance.randrange(30))
        case 2:
            model.metadata_props.add(key=chance.choice(("ort_config", "fedlora_base")), value="{}")
        case 3:
            model.functions.append(helper.make_function("", "Add", ["a"], ["b"], [], []))
        case 4:
            model.training_info.add()
        case 5:
            model.graph.sparse_initializer.add()
        case _:
            model.graph.node[0].attribute.append(AttributeProto(name="x", ref_attr_name="y", type=AttributeProto.INT))


CHANGES: Sequence[Callable[[Model, random.Random], None]] = (
    other_operation, other_domain, more_operations, fewer_operations, moved_operation, doubled_part, other_wire,
    other_attribute, added_attribute, other_place, other_tensor, other_signature, around_it,
)  # fmt: skip


def written(content: bytes) -> bytes:
    """The graph as protobuf reads it: its parts in the order of their names, without what says nothing."""
    model: Model = onnx.ModelProto.FromString(content)
    model.producer_name, model.graph.name = "", ""
    del model.graph.value_info[:]
    for parts in (model.graph.node, model.graph.initializer, model.graph.input, model.graph.output):
        parts.sort(key=lambda part: part.name)
    for node in model.graph.node:
        node.attribute.sort(key=lambda attribute: attribute.name)
        if not node.domain:
            node.ClearField("domain")
    model.opset_import.sort(key=lambda entry: entry.domain)
    return bytes(model.SerializeToString(deterministic=True))


def check(folder: Path, name: str, content: bytes) -> None:
    """`content` in the place of a graph is refused, or it is that graph."""
    graph, base = folder / name, open_pack(folder)
    sound, manifest, told = graph.read_bytes(), read_graph_manifest(graph), folder / f"{name}.json"
    before = told.read_bytes()
    try:
        graph.write_bytes(content)
        try:
            read_checked_graph(graph, base, manifest.profile, manifest.accuracy_level)
        except GraphError as error:
            assert str(error).startswith(str(graph))
            assert str(error).endswith("export it again")
            return
        assert written(content) == written(sound)
        change_graph(graph, lambda model: None)
        assert len(list(verify_graph(graph, base))) == 2
    finally:
        graph.write_bytes(sound)
        told.write_bytes(before)


@pytest.fixture(scope="module")
def shared_folder(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to change, one graph at a time: each is put back."""
    folder = tmp_path_factory.mktemp("random") / "model"
    folder.mkdir()
    for path in exported_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(GRAPHS))
def test_parts_that_were_changed_are_refused_or_say_the_same(shared_folder: Path, seed: int, name: str) -> None:
    chance = random.Random(seed)
    model = onnx.load(shared_folder / name, load_external_data=False)
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice(CHANGES)(model, chance)
    check(shared_folder, name, model.SerializeToString())


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(GRAPHS))
def test_bytes_that_were_changed_are_refused_or_say_the_same(shared_folder: Path, seed: int, name: str) -> None:
    check(shared_folder, name, damaged_bytes((shared_folder / name).read_bytes(), random.Random(seed)))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_order_of_parts_says_nothing(shared_folder: Path, name: str) -> None:
    model: Model = onnx.load(shared_folder / name, load_external_data=False)
    for parts in (model.graph.initializer, model.graph.value_info):
        parts.sort(key=lambda part: part.name, reverse=True)
    base, manifest = open_pack(shared_folder), read_graph_manifest(shared_folder / name)
    (shared_folder / "other.onnx").write_bytes(model.SerializeToString())
    read_checked_graph(shared_folder / "other.onnx", base, manifest.profile, manifest.accuracy_level)
