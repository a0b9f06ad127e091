"""The library: compiled once, trusted when it computes the right numbers, and exact about which adapters it has."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fedlora.errors import AdapterError, AdapterStoreFullError, UnknownAdapterError
from fedlora.native import BuildError
from fedlora.row_lora import library as library_module
from fedlora.row_lora.layout import AdapterLayout, LayoutDtype, adapter_layout
from fedlora.row_lora.library import RowLora, built_library, row_lora
from fedlora.row_lora.self_check import disagreement

from tests.core.row_lora.numbers import MODULES, random_inputs, with_update

QUICK = ("-O0", "-std=gnu11", "-fPIC", "-Wno-psabi")
# (what stands in update.h, what takes its place)
SABOTAGE = {
    "a sum too few": ("for (; i < inputs; i++) sums[0] += x[i] *", "for (; i + 1 < inputs; i++) sums[0] += x[i] *"),
    "another token's x": ("tokens[t] = x + (t < n ? t : 0) * inputs", "tokens[t] = x + (t < n ? 0 : t) * inputs"),
    "a column too few": ("for (int64_t k = 0; k < rank; k++) {", "for (int64_t k = 1; k < rank; k++) {"),
    "outputs past the last panel": ("o < outputs; o++", "o + 1 < outputs; o++"),
    "a shift left out": ("scale[o] * y[o] + shift[o]", "scale[o] * y[o]"),
    "a weight left out": ("reduced[k] *= module->weight", "reduced[k] *= 1"),
    "y replaced": ("*(wide *)(y + begin) += sums[t]", "*(wide *)(y + begin) = sums[t]"),
}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library_module, "_FLAGS", QUICK)
    return tmp_path / "cache"


@pytest.fixture
def not_yet_loaded() -> Iterator[None]:
    """For a test that asks for the process's operator anew."""
    row_lora.cache_clear()
    yield
    row_lora.cache_clear()


def small(seed: int = 0, rank: int = 4) -> AdapterLayout:
    return adapter_layout(random_inputs(dict.fromkeys(MODULES, rank), seed), MODULES)


def test_the_operator_is_one_for_the_process_and_agrees_with_numpy() -> None:
    operator = row_lora()
    assert row_lora() is operator
    assert disagreement(operator) is None


@pytest.mark.parametrize("name", ["avx512", "avx2", "a baseline"])
def test_every_instruction_set_that_this_machine_has_computes_the_same(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    best = library_module.instruction_set()
    order = ("avx512", "avx2", "a baseline")
    if best in order and order.index(name) < order.index(best):
        pytest.skip(f"{name} is not there")
    monkeypatch.setattr(library_module, "instruction_set", lambda: name)
    monkeypatch.setattr(library_module, "_FLAGS", ("-O1", *QUICK[1:]))
    assert disagreement(RowLora(built_library())) is None


@pytest.mark.parametrize("name", SABOTAGE)
@pytest.mark.usefixtures("own_cache", "not_yet_loaded")
def test_a_library_that_computes_wrong_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, after = SABOTAGE[name]
    for file in (library_module.SOURCE, *library_module._HEADERS):
        (tmp_path / file.name).write_text(file.read_text().replace(before, after))
    assert before in (library_module.SOURCE.with_name("update.h")).read_text()
    copies = tuple(tmp_path / file.name for file in library_module._HEADERS)
    monkeypatch.setattr(library_module, "SOURCE", tmp_path / library_module.SOURCE.name)
    monkeypatch.setattr(library_module, "_HEADERS", copies)
    with pytest.raises(BuildError, match=r"\.so: an update of rank \d+ in float.* differs from numpy's by"):
        row_lora()


@pytest.mark.usefixtures("own_cache", "not_yet_loaded")
def test_without_a_compiler_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(BuildError, match=r"\$CC is '/nowhere/cc', which is not installed"):
        row_lora()


@pytest.mark.usefixtures("not_yet_loaded")
def test_a_damaged_library_in_the_cache_is_compiled_again(own_cache: Path) -> None:
    library = built_library()
    content = library.read_bytes()
    library.unlink()  # never write into a library: it may be mapped
    library.write_bytes(content[:500])
    assert row_lora().library.resolve() == library
    assert list(own_cache.iterdir()) == [library]


def test_another_header_is_another_library(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built_library()
    for file in (library_module.SOURCE, *library_module._HEADERS):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(library_module, "SOURCE", tmp_path / library_module.SOURCE.name)
    headers = tuple(tmp_path / file.name for file in library_module._HEADERS)
    monkeypatch.setattr(library_module, "_HEADERS", headers)
    assert built_library() == first
    headers[0].write_text(headers[0].read_text() + "/* another */\n")
    assert len({first, built_library()}) == 2
    assert first.parent == own_cache


def test_a_number_is_never_that_of_another_adapter() -> None:
    operator, seen = row_lora(), set[int]()
    for seed in range(200):
        number = operator.add(small(seed % 3))
        assert number > 0
        assert number not in seen
        seen.add(number)
        operator.remove(number)
        with pytest.raises(UnknownAdapterError, match=f"no adapter of number {number}"):
            operator.remove(number)


def test_a_removed_adapter_is_found_no_more_though_another_took_its_place() -> None:
    operator = row_lora()
    first = operator.add(small(1))
    operator.remove(first)
    second = operator.add(small(2))
    assert first % 4096 == second % 4096
    x, y = np.ones((1, 37), np.float32), np.zeros((1, 40), np.float32)
    with pytest.raises(UnknownAdapterError):
        operator.apply(first, 0, x, y)
    assert operator.apply(second, 0, x, y).any()
    operator.remove(second)


@pytest.mark.parametrize("number", [0, -1, 4096, 1 << 40, -(1 << 63)])
def test_numbers_that_nobody_gave_are_refused(number: int) -> None:
    with pytest.raises(UnknownAdapterError):
        row_lora().remove(number)
    assert row_lora()._remove(number) == -1
    assert row_lora()._apply(number, 0, None, None, 1) == -1


def test_no_more_adapters_are_taken_than_there_is_room_for() -> None:
    operator, layout = RowLora(row_lora().library), small()
    numbers = []
    with pytest.raises(AdapterStoreFullError, match="takes no more than the 4,095 adapters that it has; remove one"):
        while True:
            numbers.append(operator.add(layout))
    assert len(set(numbers)) == 4095
    operator.remove(numbers[2000])
    numbers[2000] = operator.add(layout)
    for number in numbers:
        operator.remove(number)


def test_a_layout_lives_as_long_as_its_number() -> None:
    operator, adapter_inputs = row_lora(), random_inputs(dict.fromkeys(MODULES, 8), 5)
    number = operator.add(adapter_layout(adapter_inputs, MODULES))
    gc.collect()
    np.full(100_000, 7.0)
    x = np.random.default_rng(0).normal(size=(3, 37)).astype(np.float32)
    y = np.zeros((3, 40), np.float32)
    np.testing.assert_allclose(
        operator.apply(number, 0, x, y), with_update(y, x, adapter_inputs, ["q"]), rtol=1e-4, atol=1e-4
    )
    operator.remove(number)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, 0), (0, 1 << 40), (1, -3), (1, 1 << 40), (2, -8), (2, 4), (2, 4104), (2, 16), (3, -1), (3, 10**9), (4, -64),
        (4, 10**9), (5, -2), (5, 1), (5, 10**9),
    ],
)  # fmt: skip
def test_a_table_that_points_out_of_the_values_is_refused(column: int, value: int) -> None:
    inputs = {**random_inputs({"down": 8}, 6, {"down": (64, 48)}), "down.output_scale": np.ones(64, np.float32)}
    layout = adapter_layout(inputs, {"down": (64, 48)})
    table = layout.table.copy()
    table[0, column] = value
    with pytest.raises(AdapterError, match="layout points out of its values"):
        row_lora().add(AdapterLayout(values=layout.values, table=table, scales=layout.scales))


def test_a_weighted_sum_of_adapters_is_their_joined_rank_and_outlives_what_it_was_made_of() -> None:
    operator, weights = row_lora(), (0.7, -1.5, 2.0)
    given = [random_inputs({"q": 3, "down": 21}, 7), random_inputs({"q": 40, "v": 8}, 8), random_inputs({"o": 1}, 9)]
    dtypes: tuple[LayoutDtype, ...] = ("float32", "float32", "float16")
    numbers = [operator.add(adapter_layout(one, MODULES, dtype)) for one, dtype in zip(given, dtypes, strict=True)]
    total = operator.combine(numbers, weights)
    for number in numbers:
        operator.remove(number)
    gc.collect()
    for place, (module, (outputs, inputs)) in enumerate(MODULES.items()):
        x = np.random.default_rng(place).normal(size=(11, inputs)).astype(np.float32)
        y = np.ones((11, outputs), np.float32)
        updates = [with_update(np.zeros_like(y), x, one, [module]) for one in given]
        expected = y + sum(weight * update for weight, update in zip(weights, updates, strict=True))
        # The third has values in float16.
        np.testing.assert_allclose(
            operator.apply(total, place, x, y), expected, rtol=1e-2, atol=1e-2 if module == "o" else 1e-3
        )
    operator.remove(total)
    with pytest.raises(UnknownAdapterError, match=rf"by the numbers \[{numbers[0]}, {numbers[1]}\]; add them first"):
        operator.combine(numbers[:2], (1.0, 1.0))


def test_adapters_of_other_modules_make_no_sum() -> None:
    operator = row_lora()
    other = {**MODULES, "down": (64, 47)}
    numbers = [operator.add(small()), operator.add(adapter_layout(random_inputs({"q": 4}, 0, other), other))]
    for wrong in (numbers, numbers[:0]):
        with pytest.raises(UnknownAdapterError, match="no adapters of the same modules"):
            operator.combine(wrong, (1.0,) * len(wrong))
    for number in numbers:
        operator.remove(number)


def test_threads_that_add_at_once_get_numbers_of_their_own() -> None:
    operator, layout, numbers = row_lora(), small(), list[int]()

    def add() -> None:
        numbers.extend(operator.add(layout) for _ in range(100))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 400
    for number in numbers:
        operator.remove(number)
