"""The operator in ONNX Runtime: every row with its own adapter, whatever the mix, and no harm from wrong ones."""

# S rows, T tokens of each, I in features, O out features, R rank

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fedlora.row_lora.layout import LayoutDtype, adapter_layout
from fedlora.row_lora.library import DOMAIN, OPERATOR, VERSION, row_lora
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.core.row_lora.numbers import GROUPS, MODULES, Floats, InputShapes, random_inputs, rounded, with_update

RANKS = (1, 3, 4, 7, 8, 9, 12, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64)


def graph(module: int, sizes: Sequence[int], *, in_place: bool) -> bytes:
    """One node; where it may write into its input, nobody else reads that: it is the product of another node."""
    names = {"base": "float", "x": "float", "adapters": "int64"}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT if kind == "float" else TensorProto.INT64, None)
        for name, kind in names.items()
    ]
    nodes = [helper.make_node("Neg", ["base"], ["negative"]), helper.make_node("Neg", ["negative"], ["own"])]
    nodes.append(
        helper.make_node(
            OPERATOR, ["own" if in_place else "base", "x", "adapters"], ["y"], domain=DOMAIN, module=module, sizes=sizes
        )
    )
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    built = helper.make_graph(nodes if in_place else nodes[2:], "g", inputs, [output])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)]
    content: bytes = helper.make_model(built, opset_imports=imports, ir_version=11).SerializeToString()
    return content


@cache
def session(module: int, sizes: tuple[int, ...], in_place: bool = False, threads: int = 1) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(str(row_lora().library))
    content = graph(module, sizes, in_place=in_place)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def session_of(group: Sequence[str], in_place: bool = False, threads: int = 1) -> Any:
    sizes = tuple(MODULES[module][0] for module in group)
    return session(list(MODULES).index(group[0]), sizes, in_place, threads)


@contextmanager
def added(adapters: Sequence[InputShapes], dtype: LayoutDtype = "float32") -> Any:
    """Their numbers, within."""
    numbers = [row_lora().add(adapter_layout(adapter_inputs, MODULES, dtype)) for adapter_inputs in adapters]
    yield numbers
    for number in numbers:
        row_lora().remove(number)


def inputs_of(group: Sequence[str], shape: tuple[int, ...], seed: int) -> tuple[Floats, Floats]:
    """Random base [..., O] and x [..., I]."""
    generator = np.random.default_rng(seed)
    outputs, inputs = sum(MODULES[module][0] for module in group), MODULES[group[0]][1]
    base, x = (generator.normal(size=(*shape, width)).astype(np.float32) for width in (outputs, inputs))
    return base, x


def random_adapters(count: int, seed: int) -> list[InputShapes]:
    """Adapters that differ in where they sit and in the rank of each module."""
    generator = np.random.default_rng(seed)
    mixes: list[Mapping[str, int]] = [
        {module: int(generator.choice(RANKS)) for module in MODULES if generator.random() < 0.8} for _ in range(count)
    ]
    return [random_inputs(ranks, seed * 1000 + place) for place, ranks in enumerate(mixes)]


def assert_rows(got: Floats, expected: Sequence[NDArray[np.float64]]) -> None:
    """Sums of up to 64 and 64 products, rounded to float32."""
    for row, wanted in zip(got, expected, strict=True):
        assert np.abs(row - wanted).max(initial=0) <= 1e-5 * max(1.0, np.abs(wanted).max(initial=0))


@pytest.mark.parametrize("seed", range(24))
def test_every_row_of_a_random_batch_gets_its_own_update(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, length = int(generator.integers(1, 17)), int(generator.choice([1, 1, 2, 7, 8, 9, 15, 16, 17, 33, 70]))
    dtype: LayoutDtype = ("float32", "float16")[seed % 2]
    adapters = random_adapters(5, seed)
    kept = [rounded(adapter_inputs, dtype) for adapter_inputs in adapters]
    with added(adapters, dtype) as numbers:
        which = generator.integers(-1, len(adapters), rows)  # -1: none; several rows may share one
        named = np.array([0 if place < 0 else numbers[place] for place in which], np.int64)
        for group in GROUPS:
            base, x = inputs_of(group, (rows, length), seed)
            before = base.copy()
            expected = [
                with_update(base[row], x[row], {} if place < 0 else kept[place], group)
                for row, place in enumerate(which)
            ]
            for in_place in (False, True):
                for threads in (1, 2):
                    run = session_of(group, in_place, threads)
                    (got,) = run.run(None, {"base": base, "x": x, "adapters": named})
                    assert_rows(got, expected)
                    assert np.array_equal(base, before)
                    without = which < 0
                    assert np.array_equal(got[without], base[without])  # bit for bit


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_rank_is_summed_whole(rank: int, dtype: LayoutDtype) -> None:
    adapter_inputs = random_inputs(dict.fromkeys(MODULES, rank), rank)
    with added([adapter_inputs], dtype) as numbers:
        for group in GROUPS:
            for length in (1, 2, 8, 19):
                base, x = inputs_of(group, (1, length), rank)
                (got,) = session_of(group).run(None, {"base": base, "x": x, "adapters": np.array(numbers, np.int64)})
                assert_rows(got, [with_update(base[0], x[0], rounded(adapter_inputs, dtype), group)])


def test_work_that_is_divided_among_threads_gives_the_same_bits() -> None:
    adapters = [random_inputs(dict.fromkeys(MODULES, 64), seed) for seed in range(3)]
    with added(adapters) as numbers:
        base, x = inputs_of(GROUPS[0], (6, 70), 1)
        feeds = {"base": base, "x": x, "adapters": np.array([*numbers, 0, *numbers[:2]], np.int64)}
        results = [session_of(GROUPS[0], threads=threads).run(None, feeds)[0] for threads in (1, 2, 2)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[1], results[2])


def test_a_row_has_the_same_bits_whoever_is_beside_it() -> None:
    adapters = random_adapters(4, 99)
    with added(adapters) as numbers:
        base, x = inputs_of(GROUPS[0], (4, 1), 2)
        run = session_of(GROUPS[0]).run
        (together,) = run(None, {"base": base, "x": x, "adapters": np.array(numbers, np.int64)})
        for row, number in enumerate(numbers):
            feeds = {"base": base[row : row + 1], "x": x[row : row + 1], "adapters": np.array([number], np.int64)}
            assert np.array_equal(run(None, feeds)[0][0], together[row])


def test_flat_tokens_are_rows_of_one_length() -> None:
    adapter_inputs = random_inputs({"q": 5}, 3)
    with added([adapter_inputs]) as numbers:
        base, x = inputs_of(GROUPS[0], (6,), 3)
        feeds = {"base": base, "x": x, "adapters": np.array([0, numbers[0]], np.int64)}
        (got,) = session_of(GROUPS[0]).run(None, feeds)
    assert np.array_equal(got[:3], base[:3])
    assert_rows(got[None, 3:], [with_update(base[3:], x[3:], adapter_inputs, GROUPS[0])])


def test_a_batch_without_tokens_is_none() -> None:
    base, x = inputs_of(GROUPS[0], (2, 0), 4)
    (got,) = session_of(GROUPS[0]).run(None, {"base": base, "x": x, "adapters": np.zeros(2, np.int64)})
    assert got.shape == base.shape


def refused(group: Sequence[str], words: str, **changes: Any) -> None:
    base, x = inputs_of(group, (2, 3), 5)
    feeds = {"base": base, "x": x, "adapters": np.zeros(2, np.int64), **changes}
    with pytest.raises(Exception, match=f"RowLora: {words}"):
        session_of(group).run(None, feeds)


@pytest.mark.parametrize("number", [1, -1, 4095, 4096, 1 << 40, -(1 << 63), (1 << 63) - 1])
def test_a_number_that_nobody_gave_is_refused(number: int) -> None:
    refused(GROUPS[0], "there is no adapter of that number", adapters=np.array([0, number], np.int64))


def test_a_number_that_was_removed_is_refused_though_its_place_is_taken_again() -> None:
    with added([random_inputs({"q": 4}, 6)]) as numbers:
        (old,) = numbers
    with added([random_inputs({"q": 4}, 7)]) as numbers:
        assert numbers[0] % 4096 == old % 4096
        refused(GROUPS[0], "there is no adapter of that number", adapters=np.array([numbers[0], old], np.int64))


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"q": (40, 37), "k": (16, 37)}, "the adapter has fewer modules than the graph"),
        ({**MODULES, "v": (21, 37)}, "the adapter was made for modules of other sizes"),
        ({**MODULES, "q": (40, 38)}, "the adapter was made for modules of other sizes"),
    ],
)
def test_an_adapter_of_another_base_is_refused(modules: Mapping[str, tuple[int, int]], words: str) -> None:
    number = row_lora().add(adapter_layout(random_inputs({"q": 4}, 8, modules), modules))
    refused(GROUPS[0], words, adapters=np.array([number, 0], np.int64))
    row_lora().remove(number)


def test_shapes_that_do_not_agree_are_refused() -> None:
    refused(GROUPS[0], "base does not have the outputs", base=np.zeros((2, 3, 62), np.float32))
    refused(GROUPS[0], "base, x and adapters do not have the same rows", adapters=np.zeros(4, np.int64))
    refused(GROUPS[0], "base, x and adapters do not have the same rows", adapters=np.zeros(0, np.int64))
    refused(GROUPS[0], "base, x and adapters do not have the same rows", x=np.zeros((2, 2, 37), np.float32))
    refused(GROUPS[0], "a tensor has 1 to 4 dimensions", base=np.zeros((), np.float32))
    refused(GROUPS[0], "a tensor has 1 to 4 dimensions", x=np.zeros((1, 1, 2, 3, 37), np.float32))
    with added([random_inputs({"q": 4}, 9)]) as numbers:  # x of other features is no harm without an adapter
        refused(
            GROUPS[0], "the adapter was made for modules of other sizes", x=np.zeros((2, 3, 36), np.float32),
            adapters=np.array([numbers[0], 0], np.int64),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "sizes"), [(-1, [61]), (0, []), (0, [0, 61]), (0, [-5, 66]), (0, [1] * 17), (0, [1 << 40])]
)
def test_a_node_with_attributes_that_no_graph_has_is_refused_when_it_is_loaded(module: int, sizes: list[int]) -> None:
    with pytest.raises(Exception, match="sizes"):
        session(module, tuple(sizes))
