"""Ways to make the exporter write a wrong graph, or feed a right one wrongly: what its check must see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import fedlora.graph.adapter_inputs as adapter_inputs_module
import fedlora_export.export as export_module
import onnx_ir as ir
import pytest
from fedlora.base.pack import BasePack
from fedlora.exported.inputs import input_names
from fedlora.exported.profiles import Profile
from fedlora.graph.builder import GraphBuilder, Value

Patch = pytest.MonkeyPatch
Sabotage = Callable[[Patch], None]


def swapped(name: str, left: str, right: str) -> str:
    """`name` with `left` for `right` and the other way round."""
    return name.replace(left, "\0").replace(right, left).replace("\0", right)


def swap_modules(inputs: type[Any], left: str, right: str) -> Sabotage:
    """Each of two modules stands at the other's place, in the profile that `inputs` makes."""

    def sabotage(patch: Patch) -> None:
        original = inputs.linear

        def wrong(self: Any, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
            outputs: list[Value] = original(self, builder, x, [swapped(module, left, right) for module in modules])
            return outputs

        patch.setattr(inputs, "linear", wrong)

    return sabotage


def swap_inputs(left: str, right: str) -> Sabotage:
    """The base is right, and so is every shape: only with an adapter is the graph wrong."""
    return lambda patch: patch.setattr(
        adapter_inputs_module, "input_names", lambda module: input_names(swapped(module, left, right))
    )


def change_model(change: Callable[[ir.Model], None]) -> Sabotage:
    """Change the finished graph."""

    def sabotage(patch: Patch) -> None:
        original = export_module.build_graph

        def wrong(base: BasePack, profile: Profile, accuracy_level: int, **how: bool) -> ir.Model:
            model = original(base, profile, accuracy_level, **how)
            change(model)
            return model

        patch.setattr(export_module, "build_graph", wrong)

    return sabotage


def change_nodes(change: Callable[[ir.Node], None]) -> Sabotage:
    """Change nodes of the finished graph."""

    def change_each(model: ir.Model) -> None:
        for node in model.graph:
            change(node)

    return change_model(change_each)


def set_attribute(kind: str, name: str, value: float | str) -> Sabotage:
    """Every node of a kind has another attribute."""

    def change(model: ir.Model) -> None:
        nodes = [node for node in model.graph if node.op_type == kind]
        assert nodes
        for node in nodes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return change_model(change)


def set_constant(name: str, values: Sequence[int] | int) -> Sabotage:
    """A constant of the graph has other values."""

    def change(model: ir.Model) -> None:
        constant = model.graph.initializers[name].const_value
        assert constant is not None
        other = constant.numpy().copy()
        other[...] = values
        assert not (other == constant.numpy()).all()
        model.graph.initializers[name].const_value = ir.tensor(other, name=name)

    return change_model(change)


def set_input(node_name: str, index: int, source: int | None) -> Sabotage:
    """The nodes of a name's end read another of their inputs at `index`, or nothing."""

    def change(model: ir.Model) -> None:
        nodes = [node for node in model.graph if (node.name or "").endswith(node_name)]
        assert nodes
        for node in nodes:
            node.replace_input_with(index, None if source is None else node.inputs[source])

    return change_model(change)


def swap_parts(count: int) -> Sabotage:
    """The last two parts of every Split into `count`, which have one size, stand at each other's place."""

    def change(model: ir.Model) -> None:
        splits = [node for node in model.graph if node.op_type == "Split" and len(node.outputs) == count]
        assert splits
        for node in splits:
            left, right = node.outputs[-2:]
            uses = [(use, right) for use in left.uses()] + [(use, left) for use in right.uses()]
            for use, value in uses:
                use.node.replace_input_with(use.idx, value)

    return change_model(change)
