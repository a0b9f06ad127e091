"""Many sums at once have the bits of a `RingSum` each, whatever comes in whatever order and grouping."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from fedlora_server.means import ring_sums as sums_module
from fedlora_server.means.ring_kernel import ring_kernel
from fedlora_server.means.ring_sum import RingSum
from fedlora_server.means.ring_sums import Batch, RingSums
from fedlora_server.means.ring_windows import Term
from numpy.typing import NDArray

SHAPES = [(3, 5), (4, 700), (7, 2), (1, 4097)]
Updates = list[tuple[list[NDArray[np.float32]], float]]


@pytest.fixture(params=["kernel", "numpy"], autouse=True)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(sums_module, "ring_kernel", lambda: None)
    elif ring_kernel() is None:
        pytest.skip("there is no C compiler here")


def updates_of(seed: int, count: int) -> Updates:
    """Of many sizes; some smaller than the sums, some zero, some with a number that is not finite."""
    generator, updates = np.random.default_rng(seed), []
    for number in range(count):
        arrays = []
        for rows, columns in SHAPES:
            short = number % 3 == 2
            shape = (rows, max(1, columns - 1)) if short and rows > 1 else (rows, columns)
            size = generator.choice([0, 1, 1, 1, 1e-30, 3e5])
            arrays.append((size * generator.normal(size=shape)).astype(np.float32))
        if seed % 5 == 4 and number == 1:
            arrays[0][0, 0] = math.nan
        updates.append((arrays, float(generator.integers(1, 10 ** int(generator.integers(1, 9))))))
    return updates


def summed(updates: Updates, at_once: int) -> RingSums:
    sums = RingSums(SHAPES)
    for start in range(0, len(updates), at_once):
        some = updates[start : start + at_once]
        batch = Batch([arrays for arrays, _ in some], [weight for _, weight in some])
        sums.add(batch, 0, 2)
        sums.add(batch, 2)
    return sums


def bits(sums: RingSums) -> list[bytes]:
    return [mean.tobytes() for mean in sums.means(Fraction(7))]


def one_by_one(groups: list[tuple[Updates, float]]) -> list[bytes]:
    """The same by a RingSum for each."""
    means = []
    for number, shape in enumerate(SHAPES):
        total = RingSum(shape)
        for updates, factor in groups:
            part = RingSum(shape)
            for arrays, weight in updates:
                part.add(Term(arrays[number], weight))
            total.merge(part, factor)
        means.append(total.mean(Fraction(7)).tobytes())
    return means


@pytest.mark.parametrize("seed", range(12))
def test_many_sums_have_the_bits_of_a_sum_each_in_every_order_and_grouping(seed: int) -> None:
    updates = updates_of(seed, 11)
    expected = one_by_one([(updates, 1.0)])
    for at_once, turned in ((1, False), (3, True), (11, False)):
        assert bits(summed(updates[::-1] if turned else updates, at_once)) == expected


@pytest.mark.parametrize("seed", range(8))
def test_groups_that_are_merged_with_factors_have_those_bits_too(seed: int) -> None:
    updates = updates_of(seed, 12)
    groups = [(updates[:4], 1.0), (updates[4:7], 0.3), (updates[7:10], 1.0), (updates[10:], 0.3)]
    expected = one_by_one(groups)
    for order in (groups, groups[::-1]):
        total = RingSums(SHAPES)
        for some, factor in order:
            total.merge(summed(some, 4), factor)
        assert bits(total) == expected


@pytest.mark.parametrize("seed", range(5))
def test_what_is_taken_back_leaves_no_trace(seed: int) -> None:
    updates, others = updates_of(seed, 5), updates_of(seed + 20, 4)
    back = [(arrays, -weight) for arrays, weight in others]
    assert bits(summed([*others, *updates, *back], 4)) == one_by_one([(updates, 1.0)])


def test_more_terms_than_an_integer_has_room_for_are_added_elsewhere() -> None:
    array = np.full((1, 1), 2 - 2.0**-23, np.float32)
    sums = RingSums([(1, 1)])
    for _ in range(1025):
        sums.add(Batch([[array]] * 33, [2.0**13] * 33))
    assert sums.means(Fraction(1))[0][0, 0] == np.float32(float(array[0, 0]) * 2.0**13 * 1025 * 33)


def test_the_memory_of_one_round_is_used_by_the_next_whatever_it_holds() -> None:
    shape = (1 << 10, 1 << 9)
    for value in (3.0, 5.0):
        sums = RingSums([shape])
        sums.add(Batch([[np.full(shape, value, np.float32)]], [2.0]))
        np.testing.assert_array_equal(sums.means(Fraction(2))[0], np.full(shape, value, np.float32))
