"""Student's distribution beside the one of scipy, and beside printed tables where it is not installed."""

from __future__ import annotations

import math

import pytest
from fedlora.errors import ConfigError
from fedlora_simulations.reports.student import between, interval, paired, quantile

# Fisher and Yates: the t of a two-sided 5%, by degrees of freedom.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize("freedom", TABLE)
def test_the_quantiles_are_those_of_printed_tables(freedom: int) -> None:
    assert quantile(0.95, freedom) == pytest.approx(TABLE[freedom], abs=5e-4)


@pytest.mark.parametrize("freedom", [*range(1, 40), 99, 100, 1000])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 12.0])
def test_the_distribution_is_that_of_scipy(freedom: int, t: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert between(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-12)
    assert between(-t, freedom) == between(t, freedom)


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30])
def test_a_quantile_is_that_of_scipy(freedom: int, probability: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert quantile(probability, freedom) == pytest.approx(stats.t.ppf((1 + probability) / 2, freedom), rel=1e-9)


def test_a_paired_difference_has_the_interval_and_p_of_scipys_paired_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    ones, others = [2.31, 2.28, 2.40, 2.35], [2.40, 2.29, 2.44, 2.47]
    found, oracle = paired(ones, others), stats.ttest_rel(ones, others)
    low, high = oracle.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, oracle.pvalue), rel=1e-9)
    assert found.count == 4
    assert found.is_clear == (oracle.pvalue < 0.05)


def test_one_value_has_no_interval_and_equal_ones_have_one_of_no_width() -> None:
    alone = interval([2.0])
    assert (alone.mean, alone.low, alone.high, alone.p, alone.is_clear) == (2.0, None, None, None, False)
    same = interval([2.0, 2.0, 2.0])
    assert (same.low, same.high, same.p) == (2.0, 2.0, 0.0)
    assert interval([0.0, 0.0]).p == 1.0
    assert not interval([0.0, 0.0]).is_clear


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least one"):
        interval([])
    with pytest.raises(ConfigError, match="2 values beside 1; expected pairs"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="expected at least 1"):
        between(1.0, 0)
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="expected one between 0 and 1"):
            quantile(wrong, 3)
