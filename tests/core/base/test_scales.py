"""The rules that find scales, against an exhaustive search and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.base.quantize import dequantize, quantize
from fedlora.base.scales import SCALE_RULES, ScaleRule, least_error, max_abs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

LAYOUTS = pytest.mark.parametrize(
    ("bits", "block_size", "symmetric"),
    [(bits, block, symmetric) for bits in (4, 8) for block in (32, 64, 128) for symmetric in (True, False)],
)
# At 8 bits the error is a jagged function of the scale: whoever tries a thousand scales also finds what fits by chance.
WITHIN = {4: 1.01, 8: 1.15}
# Of every magnitude: numbers whose square is beyond float32 above and below, subnormal ones, zeros.
NUMBERS = st.one_of(
    st.floats(-8, 8, width=32),
    st.floats(-(2.0**123), 2.0**123, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 7.0, -8.0, 1e-30, -1e-38, 1e-42, 1e37]),
)


def _squared_errors(
    blocks: NDArray[np.float32], bits: int, symmetric: bool, rule: ScaleRule
) -> NDArray[np.float64]:  # [N, B] -> [N]
    """What each block loses once it is stored and read again, in float64."""
    stored = quantize(blocks, bits=bits, block_size=blocks.shape[1], symmetric=symmetric, scale_rule=rule)
    return np.asarray(np.square(dequantize(stored).astype(np.float64) - blocks).sum(1))


def _least_squared_error(block: NDArray[np.float32], bits: int, symmetric: bool) -> float:
    """The least squared error of a block, over 1,001 scales of both signs and all zero points that leave no code unused."""
    levels, best = 2**bits, np.inf
    weights = block.astype(np.float64)  # [B]
    span = np.abs(weights).max() if symmetric else np.maximum(weights, 0).max() - np.minimum(weights, 0).min()
    full = span / (levels // 2) if symmetric else span / (levels - 1)
    # A finer grid of codes leaves less to gain by clipping.
    low, high = (0.3, 1.3) if bits == 4 else (0.95, 1.05)
    scales = (np.linspace(low, high, 1001) * full)[:, None]  # [S, 1], and so all below
    steps = np.rint(weights / scales)  # [S, B]
    if symmetric:
        first = last = np.full_like(scales, levels // 2)
    else:
        ends = -steps.min(1, keepdims=True), levels - 1 - steps.max(1, keepdims=True)
        first, last = np.clip(np.minimum(*ends), 0, levels - 1), np.clip(np.maximum(*ends), 0, levels - 1)
    for beyond in range(int((last - first).max()) + 1):
        zero = np.minimum(first + beyond, last)
        for sign in (1, -1) if symmetric else (1,):
            kept = np.clip(sign * steps, -zero, levels - 1 - zero) * sign * scales
            best = min(best, float(np.square(kept - weights).sum(1).min()))
    return best


@LAYOUTS
def test_the_search_comes_close_to_an_exhaustive_one(bits: int, block_size: int, symmetric: bool) -> None:
    generator = np.random.default_rng(5)
    blocks = np.concatenate([generator.normal(size=(4, block_size)), generator.standard_t(3, size=(4, block_size))])
    blocks = blocks.astype(np.float32)
    exhaustive = np.array([_least_squared_error(block, bits, symmetric) for block in blocks])
    found = _squared_errors(blocks, bits, symmetric, "mse")
    assert np.mean(np.sqrt(found / exhaustive)) < WITHIN[bits]


@LAYOUTS
def test_mse_loses_less_than_max_abs_on_normal_numbers(bits: int, block_size: int, symmetric: bool) -> None:
    blocks = np.random.default_rng(6).normal(size=(64, block_size)).astype(np.float32)
    mse, largest = (_squared_errors(blocks, bits, symmetric, rule).sum() for rule in ("mse", "max-abs"))
    assert mse < 0.97 * largest


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@given(blocks=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(32)), elements=NUMBERS))
def test_no_block_is_worse_by_mse_than_by_max_abs(bits: int, symmetric: bool, blocks: NDArray[np.float32]) -> None:
    mse, largest = (_squared_errors(blocks, bits, symmetric, rule) for rule in ("mse", "max-abs"))
    assert (mse <= largest).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_mse_finds_a_symmetric_grid_whose_ends_max_abs_cannot_both_keep(bits: int, sign: int) -> None:
    end = 2 ** (bits - 1) - 1
    block = (sign * 0.3 * np.linspace(-end, end, 32).round()).astype(np.float32)[None]
    assert _squared_errors(block, bits, True, "max-abs")[0] > 0.01
    assert _squared_errors(block, bits, True, "mse")[0] < 1e-9


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_block_alone_gets_the_bytes_that_it_gets_among_others(rule: ScaleRule, symmetric: bool) -> None:
    blocks = np.random.default_rng(8).standard_t(3, size=(33, 64)).astype(np.float32)
    scales, zeros = SCALE_RULES[rule](blocks, 16, symmetric)
    alone = [SCALE_RULES[rule](blocks[i : i + 1], 16, symmetric) for i in range(len(blocks))]
    np.testing.assert_array_equal(scales, np.concatenate([found[0] for found in alone]))
    np.testing.assert_array_equal(zeros, np.concatenate([found[1] for found in alone]))


def test_blocks_are_searched_in_chunks_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = np.random.default_rng(9).normal(size=(50, 32)).astype(np.float32)
    whole = least_error(blocks, 16, False)
    monkeypatch.setattr("fedlora.base.scales._CHUNK_ELEMENTS", 7 * 32)
    for got, expected in zip(least_error(blocks, 16, False), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_is_a_code(rule: ScaleRule, bits: int) -> None:
    generator = np.random.default_rng(10)
    offsets = np.array([-9, -1, 0, 1, 9], np.float32)[:, None]  # blocks of one sign, too
    blocks = (generator.normal(size=(5, 64)) + offsets).astype(np.float32)
    _, zeros = SCALE_RULES[rule](blocks, 2**bits, False)
    assert zeros.min() >= 0
    assert zeros.max() <= 2**bits - 1
    np.testing.assert_array_equal(zeros, np.rint(zeros))


def test_a_search_leaves_its_blocks_alone_and_gives_what_max_abs_gives_where_nothing_is_lost() -> None:
    blocks = np.arange(-8, 8, dtype=np.float32).repeat(2)[None].copy()
    before = blocks.copy()
    for got, expected in zip(least_error(blocks, 16, True), max_abs(blocks, 16, True), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(blocks, before)
