from __future__ import annotations

import numpy as np
import pytest
from fedlora_serve.text.running_sum import first_above
from hypothesis import given
from hypothesis import strategies as st


@given(
    weights=st.lists(st.integers(0, 3), min_size=1, max_size=12).filter(any),
    times=st.sampled_from([1, 100, 1000]),
    share=st.integers(0, 63),
)
def test_the_place_is_the_first_whose_running_sum_is_above_the_target(
    weights: list[int], times: int, share: int
) -> None:
    many = np.array(weights * times, np.float32)  # whole numbers: every sum is exact
    target = share / 64 * float(many.sum())
    assert first_above(many, target) == np.flatnonzero(many.cumsum(dtype=np.float64) > target)[0]


@pytest.mark.parametrize("size", [3, 5000])
def test_where_rounding_leaves_none_it_is_the_last_place_that_adds_something(size: int) -> None:
    weights = np.zeros(size, np.float32)
    weights[1] = 1
    for target in (0.0, 1.0, 1.1):
        assert first_above(weights, target) == 1
