from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.errors import ConfigError
from fedlora_serve.sampling import Sampling, choose

SCORES = np.array([2.0, -1.0, 0.5, 2.5, -30.0, 1.0, 0.0, 1.5], np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_frequencies_of_the_chosen_tokens_are_those_of_softmax(temperature: float) -> None:
    draws = 20_000
    generator = np.random.default_rng(11)
    counts = np.bincount([choose(SCORES, temperature, generator) for _ in range(draws)], minlength=len(SCORES))
    weights = [math.exp(float(score) / temperature) for score in SCORES]
    expected = draws * np.array(weights) / sum(weights)
    common = expected >= 5
    statistic = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    # 99.9% of chi-square with 7 degrees of freedom lies below 24.3; the seed is fixed.
    assert statistic < 24.3
    assert counts[~common].sum() <= 20
    # The bound notices a wrong temperature.
    other = np.exp(SCORES.astype(np.float64) / (1.2 * temperature))
    wrong = draws * other / other.sum()
    assert float(((counts - wrong)[common] ** 2 / wrong[common]).sum()) > 24.3


def test_temperature_0_takes_the_first_of_the_largest_scores_and_draws_nothing() -> None:
    generator = np.random.default_rng(0)
    state = generator.bit_generator.state
    assert choose(np.array([1, 5, 3, 5], np.float32), 0, generator) == 1
    assert generator.bit_generator.state == state


def test_the_same_seed_draws_the_same_tokens() -> None:
    draws = [
        [choose(SCORES, 1.0, generator) for _ in range(50)]
        for generator in (np.random.default_rng(seed) for seed in (5, 5, 6))
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize("shift", [-1e30, 0.0, 1e4, 1e30])
def test_scores_of_any_size_are_drawn_without_overflow(shift: float) -> None:
    scores = np.array([shift, shift, -1e38], np.float32)
    assert {choose(scores, 1.0, np.random.default_rng(seed)) for seed in range(20)} == {0, 1}


def test_a_tiny_temperature_is_greedy_and_a_scale_is_a_temperature() -> None:
    assert {choose(SCORES, 1e-3, np.random.default_rng(seed)) for seed in range(50)} == {3}
    for seed in range(50):
        assert choose(SCORES, 2.0, np.random.default_rng(seed)) == choose(
            SCORES / np.float32(2), 1.0, np.random.default_rng(seed)
        )


@pytest.mark.parametrize("temperature", [-0.1, 100.1, math.nan, math.inf])
def test_a_temperature_out_of_range_is_refused_with_its_value(temperature: float) -> None:
    with pytest.raises(ConfigError, match=rf"temperature must be from 0 \(greedy\) to 100, got {temperature}"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_less_than_one_token_is_refused(max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"max_tokens must be at least 1, got {max_tokens}"):
        Sampling(max_tokens=max_tokens)
