"""Graphs as somebody else changes them: to run for ever, to fill the memory, to read what is not theirs. Signed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fedlora.base.pack import open_pack
from fedlora.exported.graph_manifest import read_graph_manifest, write_graph_manifest
from onnx import TensorProto, helper, numpy_helper

Model = Any  # an onnx.ModelProto: its fields are made when it runs
Change = Callable[[Model], object]


def change_graph(graph: Path, change: Change) -> None:
    """Change the file of a graph, and write a manifest that agrees with it."""
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())
    manifest = read_graph_manifest(graph)
    write_graph_manifest(
        graph,
        base_fingerprint=open_pack(graph.parent).fingerprint,
        profile=manifest.profile,
        accuracy_level=manifest.accuracy_level,
        inputs=manifest.inputs,
    )


def endless(model: Model) -> None:
    """A loop of 2^62 turns before the first output."""
    name = _renamed_output(model)
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["v", "v"], ["v2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("c2", TensorProto.BOOL, []), value("v2", TensorProto.FLOAT, None)],
    )
    _constant(model, "turns", np.array(2**62))
    _constant(model, "yes", np.array(True))
    model.graph.node.append(helper.make_node("Loop", ["turns", "yes", "inner"], [name], body=body))


def branching(model: Model) -> None:
    """A branch that holds large weights of its own."""
    name = _renamed_output(model)
    weight = numpy_helper.from_array(np.zeros(1 << 20, np.float32), "w")
    nodes = [helper.make_node("ReduceMax", ["w"], ["m"]), helper.make_node("Add", ["inner", "m"], ["b"])]
    output = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    branch = helper.make_graph(nodes, "branch", [], output, [weight])
    _constant(model, "yes", np.array(True))
    model.graph.node.append(helper.make_node("If", ["yes"], [name], then_branch=branch, else_branch=branch))


def folded(kind: str) -> Change:
    """A constant of 2^40 numbers, which the runtime computes when it loads the graph."""

    def change(model: Model) -> None:
        name, size = _renamed_output(model), 1 << 40
        _constant(model, "size", np.array([size]))
        _constant(model, "one", np.ones(1, np.float32))
        _constant(model, "begin", np.array(0))
        _constant(model, "end", np.array(size))
        _constant(model, "step", np.array(1))
        _constant(model, "pads", np.array([0, size]))
        inputs = {
            "ConstantOfShape": ["size"], "Expand": ["one", "size"], "Tile": ["one", "size"], "Pad": ["one", "pads"],
            "Range": ["begin", "end", "step"],
        }[kind]  # fmt: skip
        model.graph.node.append(helper.make_node(kind, inputs, ["huge"], name="huge"))
        model.graph.node.append(helper.make_node("Cast", ["huge"], ["number"], to=TensorProto.FLOAT, name="number"))
        model.graph.node.append(helper.make_node("ReduceMax", ["number"], ["largest"], name="largest"))
        model.graph.node.append(helper.make_node("Add", ["inner", "largest"], [name], name="with_largest"))

    return change


def doubled(kind: str) -> Change:
    """Forty operations that the exporter writes, each of which makes a value twice as large."""

    def change(model: Model) -> None:
        name = _renamed_output(model)
        _constant(model, "d0", np.ones((1, 2), np.float32))
        for i in range(40):
            if kind == "Concat":
                node = helper.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0, name=f"d{i}")
            else:
                node = helper.make_node(kind, [f"d{i}", f"d{i}"], [f"d{i + 1}"], name=f"d{i}")
            model.graph.node.append(node)
        model.graph.node.append(helper.make_node("ReduceMax", ["d40"], ["largest"], name="largest"))
        model.graph.node.append(helper.make_node("Add", ["inner", "largest"], [name], name="with_largest"))

    return change


def thousands(model: Model) -> None:
    """A chain of 5,000 operations."""
    name = _renamed_output(model)
    for i in range(5000):
        before = f"n{i - 1}" if i else "inner"
        model.graph.node.append(helper.make_node("Neg", [before], [f"n{i}" if i < 4999 else name], name=f"n{i}"))


def with_function(model: Model) -> None:
    """An operation that is a function of the file's own."""
    name = _renamed_output(model)
    model.functions.append(
        helper.make_function("own", "Deep", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], model.opset_import)
    )
    model.opset_import.add(domain="own", version=1)
    model.graph.node.append(helper.make_node("Deep", ["inner"], [name], domain="own"))


def elsewhere(location: str) -> Change:
    """The first weight lies in another file."""

    def change(model: Model) -> None:
        tensor = next(one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL)
        next(entry for entry in tensor.external_data if entry.key == "location").value = location

    return change


def beyond(model: Model) -> None:
    """The first weight lies past the end of the file."""
    tensor = next(one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "offset").value = str(1 << 50)


def with_options(model: Model) -> None:
    """Options that the runtime takes from the file where it is told to."""
    model.metadata_props.add(key="ort_config", value='{"session_options": {"intra_op_num_threads": 4096}}')


def without_block_size(model: Model) -> None:
    """A product that divides by zero."""
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    next(each for each in node.attribute if each.name == "block_size").i = 0


CHANGES: dict[str, Change] = {
    "an endless loop": endless,
    "a branch with weights": branching,
    **{f"{kind} of 2^40": folded(kind) for kind in ("ConstantOfShape", "Expand", "Tile", "Pad", "Range")},
    **{f"{kind}, forty times": doubled(kind) for kind in ("Concat", "Add", "MatMul")},
    "thousands of operations": thousands,
    "a function": with_function,
    "another file": elsewhere("base.json"),
    "a file above": elsewhere("../model.safetensors"),
    "a device": elsewhere("/dev/zero"),
    "a weight beyond the end": beyond,
    "options of the runtime": with_options,
    "a block of no size": without_block_size,
}


def _renamed_output(model: Model) -> str:
    """The name of the first output; what gave it gives `inner` now."""
    name: str = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if output == name else output for output in node.output]
    return name


def _constant(model: Model, name: str, values: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
