"""A RingSum has the same bits in every order and grouping, with the kernel and without, and is as exact as it says."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from fedlora_server.means import ring_kernel as kernel_module
from fedlora_server.means import ring_sum as sum_module
from fedlora_server.means.ring_kernel import RingKernel, disagreement, ring_kernel
from fedlora_server.means.ring_sum import RingSum
from fedlora_server.means.ring_windows import ALL_ZERO, BITS, NOT_FINITE, WIDTH, Term, exponent, window_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SHAPE = (3, 5)
Array = NDArray[np.float32]


@pytest.fixture(params=["kernel", "numpy"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How terms are added."""
    if request.param == "numpy":
        monkeypatch.setattr(sum_module, "ring_kernel", lambda: None)
    elif ring_kernel() is None:
        pytest.skip("there is no C compiler here")
    return str(request.param)


@pytest.fixture(params=["kernel", "numpy"], scope="module")
def any_route(request: pytest.FixtureRequest) -> Iterator[str]:
    """`route` for all examples of a property."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(sum_module, "ring_kernel", lambda: None)
        elif ring_kernel() is None:
            pytest.skip("there is no C compiler here")
        yield str(request.param)


def numbers(shape: tuple[int, int] = SHAPE) -> st.SearchStrategy[Array]:
    """Of any size, from the smallest subnormal ones to 1e30; zeros of both signs among them."""
    one = st.one_of(
        st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-45, -1e-40, 1.0, -1.0, 0.1]),
        st.floats(-(2.0**100), 2.0**100, width=32),
        st.floats(-1, 1, width=32),
        st.floats(-(2.0**-126), 2.0**-126, width=32),
    )
    count = math.prod(shape)
    return st.lists(one, min_size=count, max_size=count).map(lambda all_: np.array(all_, np.float32).reshape(shape))


WEIGHTS = st.one_of(st.integers(1, 10**9).map(float), st.floats(1e-12, 1e12))
TERMS = st.lists(st.builds(Term, numbers(), WEIGHTS), min_size=1, max_size=9)


def mean_of(terms: Sequence[Term], at_once: int = 1) -> bytes:
    return summed(terms, at_once).mean(Fraction(3)).tobytes()


def summed(terms: Sequence[Term], at_once: int = 1) -> RingSum:
    total = RingSum(SHAPE)
    for start in range(0, len(terms), at_once):
        total.add(*terms[start : start + at_once])
    return total


@given(TERMS, st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_a_sum_has_the_same_bits_in_every_order_and_grouping(
    any_route: str, terms: list[Term], random: Random, at_once: int, cut: int
) -> None:
    expected = mean_of(terms)
    shuffled = list(terms)
    random.shuffle(shuffled)
    assert mean_of(shuffled, at_once) == expected
    total = summed(shuffled[cut:], at_once)
    total.merge(summed(shuffled[:cut]), 1)
    assert total.mean(Fraction(3)).tobytes() == expected


@given(TERMS, TERMS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_what_is_taken_back_leaves_no_trace(
    any_route: str, terms: list[Term], others: list[Term], random: Random
) -> None:
    steps = [*terms, *others, *(Term(array, -weight) for array, weight in others)]
    random.shuffle(steps)
    assert mean_of(steps, 3) == mean_of(terms)


@given(st.lists(TERMS, min_size=1, max_size=4), st.lists(WEIGHTS, min_size=4, max_size=4), st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_sums_that_are_merged_with_factors_have_the_same_bits_in_every_order(
    groups: list[list[Term]], factors: list[float], order: list[int]
) -> None:
    means = set()
    for places in (range(4), order):
        total = RingSum(SHAPE)
        for place in places:
            if place < len(groups):
                total.merge(summed(groups[place]), factors[place])
        means.add(total.mean(Fraction(7)).tobytes())
    assert len(means) == 1


@given(TERMS)
@settings(max_examples=50, deadline=None)
def test_the_kernel_and_numpy_have_the_same_bits(terms: list[Term]) -> None:
    if ring_kernel() is None:
        pytest.skip("there is no C compiler here")
    with_kernel = mean_of(terms, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_module, "ring_kernel", lambda: None)
        assert mean_of(terms, 4) == with_kernel


@given(TERMS)
@settings(max_examples=50, deadline=None)
def test_a_sum_is_off_by_no_more_than_a_rounding_of_each_term_and_one_to_float32(terms: list[Term]) -> None:
    """Against rational numbers, which are exact."""
    mean = summed(terms).mean(Fraction(1))
    sizes = (Fraction(float(np.abs(array).max())) * Fraction(weight) for array, weight in terms)
    bound = sum(sizes, Fraction(0)) / 2**BITS + Fraction(len(terms), 2 ** (1 - exponent(-5)))
    for place in np.ndindex(*SHAPE):
        exact = sum((Fraction(float(array[place])) * Fraction(weight) for array, weight in terms), Fraction(0))
        if not math.isfinite(mean[place]):
            assert abs(exact) > Fraction(2) ** 127
            continue
        largest = sum((abs(Fraction(float(array[place]))) * Fraction(weight) for array, weight in terms), Fraction(0))
        rounding = abs(exact) / 2**24 + Fraction(1, 2**149) + (largest + bound) / 2**45
        assert abs(Fraction(float(mean[place])) - exact) <= bound + rounding


def test_a_mean_is_closer_to_the_exact_one_than_a_sum_in_float32(route: str) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(40, 30)).astype(np.float32) for _ in range(200)]
    total, plain = RingSum((40, 30)), np.zeros((40, 30), np.float32)
    for array in arrays:
        total.add(Term(array, 13.0))
        plain += np.float32(13) * array
    exact = np.mean(np.array(arrays, np.float64), 0)
    ours, theirs = (np.abs(mean - exact).max() for mean in (total.mean(Fraction(2600)), plain / np.float32(2600)))
    assert ours < theirs / 4


def test_leading_parts_of_a_sum_are_added_where_they_belong(route: str) -> None:
    total = RingSum((4, 6))
    total.add(Term(np.full((4, 2), 2, np.float32), 1.0), Term(np.full((4, 2), 3, np.float32), 1.0))
    total.add(Term(np.full((2, 6), 5, np.float32), 2.0))
    expected = np.zeros((4, 6))
    expected[:, :2] += 5
    expected[:2] += 10
    np.testing.assert_array_equal(total.mean(Fraction(1)), expected)


def test_terms_of_many_sizes_have_a_window_each_and_the_largest_may_go_again(route: str) -> None:
    total, array = RingSum(SHAPE), np.ones(SHAPE, np.float32)
    weights = [2.0**power for power in range(-60, 60, WIDTH)]
    for weight in weights:
        total.add(Term(array, weight))
    for weight in weights[1:]:
        total.add(Term(array, -weight))
    np.testing.assert_array_equal(total.mean(Fraction(1)), np.full(SHAPE, weights[0], np.float32))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_shows_until_it_is_taken_back(route: str, value: float) -> None:
    total, bad = RingSum(SHAPE), np.ones(SHAPE, np.float32)
    bad[1, 2] = value
    total.add(Term(np.ones(SHAPE, np.float32), 1.0))
    total.add(Term(bad, 1.0))
    assert np.isnan(total.mean(Fraction(2))).all()
    total.add(Term(bad, -1.0))
    np.testing.assert_array_equal(total.mean(Fraction(1)), np.ones(SHAPE))


def test_a_sum_takes_more_terms_than_an_integer_has_room_for(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    terms = [Term(generator.normal(size=SHAPE).astype(np.float32), float(w)) for w in generator.integers(1, 90, 50)]
    expected = mean_of(terms)
    monkeypatch.setattr(sum_module, "MOST_TERMS", 4)
    assert mean_of(terms) == mean_of(terms[::-1], 3) == expected
    total = summed(terms[:20])
    total.merge(summed(terms[20:]), 1)
    assert total.mean(Fraction(3)).tobytes() == expected


def test_the_largest_terms_fill_a_sum_to_its_brim_and_beyond(route: str) -> None:
    """2^15 terms of 48 bits each are what 64 bits hold."""
    total, array = RingSum((1, 1)), np.full((1, 1), np.float32(2) - np.float32(2) ** -23)
    weight = 2.0 ** (WIDTH - 1)
    total.add(Term(array, weight))
    for window in total._own.values():
        window.numbers *= 1 << 15
        window.terms = 1 << 15
    for _ in range(4):
        total.add(Term(array, weight))
    expected = float(array[0, 0]) * weight * ((1 << 15) + 4)
    assert total.mean(Fraction(1))[0, 0] == np.float32(expected)


def test_a_window_is_named_by_its_largest_number() -> None:
    assert window_of(np.zeros(SHAPE, np.float32), 5.0) == ALL_ZERO
    assert window_of(np.full(SHAPE, math.nan, np.float32), 5.0) == NOT_FINITE
    for power in range(-60, 60):
        number = window_of(np.full(SHAPE, 1.5 * 2.0**power, np.float32), 1.0)
        assert number == max(-5, math.ceil((power + 2) / WIDTH))


class Wrong(RingKernel):
    """A kernel in one of whose routes one bit is another."""

    def __init__(self, inner: RingKernel, route: str) -> None:
        self.inner, self.route = inner, route

    def add(self, *arguments: Any) -> int:
        return self.inner.add(*arguments)

    def mean(self, total: NDArray[np.int64], scale: float, share: float, out: Array) -> None:
        self.inner.mean(total, scale, share, out)
        self._change("mean", out)

    def add_all(self, sums: NDArray[np.int64], first: int, last: int, *arguments: Any) -> int:
        others = self.inner.add_all(sums, first, last, *arguments)
        left: NDArray[np.uint8] = arguments[-1]
        if self.route == "left":
            left[0, 0] ^= 1
        if self.route == "add_all":
            ctypes.c_int64.from_address(int(sums[0, 0])).value += 1
        return others

    def means(self, parts: Any, factors: Any, share: float, out: Any) -> None:
        self.inner.means(parts, factors, share, out)
        self._change("means", out[-1])

    def _change(self, route: str, out: Array) -> None:
        if self.route == route:
            out[0, 0] = np.nextafter(out[0, 0], np.float32(1))


@pytest.mark.parametrize(
    ("route", "told"),
    [
        ("mean", "a mean of numbers"),
        ("left", "updates of numbers near .* are of other windows"),
        ("add_all", "sums of updates of numbers"),
        ("means", "means of updates of numbers"),
    ],
)
def test_a_kernel_that_adds_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch, route: str, told: str) -> None:
    if (kernel := ring_kernel()) is None:
        pytest.skip("there is no C compiler here")
    assert disagreement(kernel) is None
    monkeypatch.setattr(kernel_module, "RingKernel", lambda library: Wrong(kernel, route))
    ring_kernel.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=f"{told}.*numpy's; sums are made in numpy"):
            assert ring_kernel() is None
    finally:
        ring_kernel.cache_clear()


def test_without_a_compiler_numpy_adds(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path))
    ring_kernel.cache_clear()
    try:
        assert ring_kernel() is None
        assert mean_of([Term(np.ones(SHAPE, np.float32), 3.0)]) == np.ones(SHAPE, np.float32).tobytes()
    finally:
        ring_kernel.cache_clear()
