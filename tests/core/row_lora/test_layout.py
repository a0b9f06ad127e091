"""The layout of an adapter's values: what stands where, and what is refused."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.exported.inputs import input_names
from fedlora.row_lora.layout import AdapterLayout, LayoutDtype, adapter_layout
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.core.row_lora.numbers import MODULES, random_inputs

DTYPES: tuple[LayoutDtype, ...] = get_args(LayoutDtype)


def read_back(layout: AdapterLayout, place: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A [I, R'] and B [R', O] of a module, number by number as the layout's docstring says."""
    inputs, outputs, rank, at_a, at_b, _ = layout.table[place].tolist()
    values = layout.values.astype(np.float64)
    lora_A = np.array([[values[at_a + i * rank + k] for k in range(rank)] for i in range(inputs)])
    lora_B = np.array(
        [[values[at_b + (o // 16) * rank * 16 + k * 16 + o % 16] for o in range(outputs)] for k in range(rank)]
    )
    return lora_A, lora_B


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_stands_where_the_operator_reads_it(dtype: LayoutDtype) -> None:
    adapter_inputs = random_inputs({"q": 1, "v": 8, "o": 13, "down": 16}, seed=0)
    layout = adapter_layout(adapter_inputs, MODULES, dtype)
    for place, (module, (outputs, inputs)) in enumerate(MODULES.items()):
        assert layout.table[place, :2].tolist() == [inputs, outputs]
        assert layout.table[place, 2] == {"q": 8, "k": 0, "v": 8, "o": 16, "down": 16}[module]
        if module == "k":
            continue
        for got, name, axis in zip(read_back(layout, place), input_names(module), (1, 0), strict=True):
            expected = adapter_inputs[name].astype(dtype).astype(np.float64)
            real, filled = np.split(got, [expected.shape[axis]], axis)
            assert np.array_equal(real, expected)
            assert not filled.any()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
)
def test_matrices_are_aligned_lie_apart_and_hold_all_there_is(
    sizes: list[tuple[int, int, int]], dtype: LayoutDtype
) -> None:
    modules = {str(place): (outputs, inputs) for place, (outputs, inputs, _) in enumerate(sizes)}
    ranks = {str(place): rank for place, (_, _, rank) in enumerate(sizes) if rank}
    adapter_inputs = random_inputs(ranks, 1, modules)
    layout = adapter_layout(adapter_inputs, modules, dtype)
    width = layout.values.itemsize
    assert layout.values.size == 0 or layout.values.ctypes.data % 64 == 0
    taken = np.zeros(layout.values.size, np.int64)
    for inputs, outputs, rank, at_a, at_b, _ in layout.table.tolist():
        for begin, count in ((at_a, inputs * rank), (at_b, -(-outputs // 16) * 16 * rank)):
            assert begin * width % 64 == 0
            assert begin + count <= layout.values.size
            taken[begin : begin + count] += 1
    assert taken.max(initial=0) <= 1
    total = sum(float(value.astype(dtype).astype(np.float64).sum()) for value in adapter_inputs.values())
    assert float(layout.values.astype(np.float64).sum()) == pytest.approx(total, abs=1e-6)


def test_a_layout_cannot_be_changed_and_tells_its_size() -> None:
    inputs = {**random_inputs({"q": 16, "down": 16}, 2), "v.output_scale": np.ones(MODULES["v"][0], np.float32)}
    layouts = {dtype: adapter_layout(inputs, MODULES, dtype) for dtype in DTYPES}
    for layout in layouts.values():
        assert layout.size_bytes == layout.values.nbytes + layout.table.nbytes + layout.scales.nbytes
        assert layout.scales.nbytes == 2 * 4 * MODULES["v"][0]
        for array in (layout.values, layout.table, layout.scales):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
    assert layouts["float16"].values.nbytes < 0.51 * layouts["float32"].values.nbytes


def test_an_adapter_of_no_module_is_a_layout_without_values() -> None:
    layout = adapter_layout({}, MODULES)
    assert layout.values.size == 0
    assert layout.table[:, 2].tolist() == [0] * len(MODULES)


def test_a_value_beyond_float16_is_refused_in_float16_alone() -> None:
    adapter_inputs = dict(random_inputs({"q": 4}, 3))
    adapter_inputs[input_names("q")[1]] = adapter_inputs[input_names("q")[1]] * np.float32(1e6)
    adapter_layout(adapter_inputs, MODULES)
    with pytest.raises(AdapterError, match="beyond float16's 65504; keep this adapter in float32"):
        adapter_layout(adapter_inputs, MODULES, "float16")


def test_inputs_that_are_not_the_modules_own_are_refused_by_name() -> None:
    adapter_inputs = random_inputs({"q": 4}, 4)
    name_a, name_b = input_names("q")
    wrong = {
        "q: A [36, 4] and B [4, 40], expected [37, R] and [R, 40]": {
            name_a: adapter_inputs[name_a][:-1],
            name_b: adapter_inputs[name_b],
        },
        "q: A [37, 4] and B [3, 40]": {name_a: adapter_inputs[name_a], name_b: adapter_inputs[name_b][:-1]},
        "q: A [37, 4] and B []": {name_a: adapter_inputs[name_a]},
        "q: A [] and B [4, 40]": {name_b: adapter_inputs[name_b]},
        "x.lora_A.weight: the base has no such module": {**adapter_inputs, "x.lora_A.weight": adapter_inputs[name_a]},
    }
    for words, each in wrong.items():
        with pytest.raises(AdapterMismatchError) as caught:
            adapter_layout(each, MODULES)
        assert str(caught.value).startswith(words)
        assert str(caught.value).endswith("the adapter is for another base")
