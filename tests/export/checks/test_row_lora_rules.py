"""What our operator may say in a graph: one that was changed in any one place is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import ConfigError, GraphError
from fedlora.graph.graph_check import read_checked_graph
from fedlora.row_lora.library import row_lora
from fedlora_export.export import export_base
from onnx import TensorProto, helper

Model = Any  # an onnx.ModelProto: its fields are made when it runs


def operators(model: Model) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == "RowLora"]


def attribute(node: Any, name: str) -> Any:
    return next(each for each in node.attribute if each.name == name)


def set_module(place: int) -> Callable[[Model], object]:
    return lambda model: setattr(attribute(operators(model)[0], "module"), "i", place)


def set_sizes(model: Model) -> None:
    attribute(operators(model)[0], "sizes").ints[0] += 8


def swap_places(model: Model) -> None:
    """Two modules of one size change places, which every size allows, and one is named twice."""
    first, *_, last = [node for node in operators(model) if node.name.endswith("o_proj.out")]
    attribute(first, "module").i = attribute(last, "module").i


def read_other_numbers(model: Model) -> None:
    operators(model)[0].input[2] = "input_ids"


def input_of(model: Model) -> Any:
    return next(value for value in model.graph.input if value.name == "adapters")


CHANGES: dict[str, tuple[Callable[[Model], object], str]] = {
    "a place that no module has": (set_module(1000), "is of attributes .*1000"),
    "a place before the first": (set_module(-1), "is of attributes .*-1"),
    "another size": (set_sizes, "is of attributes"),
    "a module twice": (swap_places, "o_proj.out' is of attributes"),
    "a node missing": (lambda m: m.graph.node.remove(operators(m)[-1]), "node '.*down_proj.out' is missing"),
    "another attribute": (
        lambda m: operators(m)[0].attribute.append(helper.make_attribute("more", 1)),
        "is of attributes .*'more'",
    ),
    "numbers of another input": (read_other_numbers, "is of inputs .*'input_ids'"),
    "numbers of another type": (
        lambda m: setattr(input_of(m).type.tensor_type, "elem_type", TensorProto.INT32),
        "input 'adapters' is of dtype 6; expected",
    ),
    "numbers by default": (
        lambda m: m.graph.initializer.append(helper.make_tensor("adapters", TensorProto.INT64, [1], [3])),
        "an initializer has int64_data",
    ),
    "another operator of ours": (
        lambda m: m.graph.node.append(helper.make_node("Evil", ["logits"], ["new"], name="new", domain="fedlora")),
        "node 'new' is 'fedlora' 'Evil', which the exporter does not write",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_whose_operator_says_what_is_not_so_is_refused(own_folder: Path, name: str) -> None:
    change, words = CHANGES[name]
    graph, base = own_folder / "decoder.kernel.onnx", open_pack(own_folder)
    read_checked_graph(graph, base, "kernel", 4)
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=words) as caught:
        read_checked_graph(graph, base, "kernel", 4)
    assert str(caught.value).startswith(str(graph))


def test_a_product_that_several_modules_share_has_one_operator(exported_folder: Path) -> None:
    model = onnx.load(exported_folder / "decoder.kernel.onnx", load_external_data=False)
    assert len(operators(model)) == 4 * 2  # q+k+v, o, gate+up, down of each layer
    assert [value.name for value in model.graph.input if "lora" in value.name] == []


def test_where_no_operator_can_be_made_the_portable_profile_is_named(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "/nowhere/cc")
    row_lora.cache_clear()
    with pytest.raises(
        ConfigError, match="is not installed; install a C compiler, or export --profile rows, which runs"
    ):
        export_base(base, tmp_path / "model", profiles=("compat", "kernel"))
    assert list(tmp_path.iterdir()) == []
    export_base(base, tmp_path / "model", profiles=("compat", "rows"))
    row_lora.cache_clear()
