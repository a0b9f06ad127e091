from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fedlora.errors import ConfigError
from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.token_sampler import TokenSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.reference.tolerances import TOLERANCE
from tests.serve.text.sampling_reference import drawn, penalized, probabilities, softmax

SCORES = np.array([2.0, -1.0, 0.5, 2.5, -30.0, 1.0, 0.0, 1.5], np.float32)


def sampler(prompt: Sequence[int] = (), size: int = len(SCORES), **how: Any) -> TokenSampler:
    return TokenSampler(Sampling(**({"seed": 1} | how)), prompt, size)


def tokens_of(chooser: TokenSampler, scores: NDArray[np.float32], count: int) -> list[int]:
    return [chooser.choose(scores).token for _ in range(count)]


def chi_square(counts: NDArray[np.int64], share: Sequence[float]) -> float:
    """How far counts are from their expectation, over the tokens that are expected five times or more."""
    expected = counts.sum() * np.array(share)
    common = expected >= 5
    assert counts[~common].sum() <= 20
    assert not counts[expected == 0].any()
    return float(((counts - expected)[common] ** 2 / expected[common]).sum())


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.5},
        {"temperature": 1.0},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.3},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.1, "logit_bias": {1: 2.0, 3: -1.5}},
    ],
)
def test_the_frequencies_of_the_chosen_tokens_are_those_of_the_definitions(how: dict[str, Any]) -> None:
    counts = np.bincount(tokens_of(sampler(**{"seed": 11, **how}), SCORES, 20_000), minlength=len(SCORES))
    share = probabilities(SCORES.tolist(), Sampling(**how))
    # 99.9% of chi-square with 7 degrees of freedom lies below 24.3; the seed is fixed.
    assert chi_square(counts, share) < 24.3
    # The bound notices a wrong temperature.
    wrong = probabilities(SCORES.tolist(), Sampling(**{**how, "temperature": 1.3 * how["temperature"]}))
    expected = counts.sum() * np.array(wrong)
    assert float(((counts - expected)[expected >= 5] ** 2 / expected[expected >= 5]).sum()) > 24.3


# Scores in quarters: no two are told apart by rounding alone.
quarters = st.integers(-40, 40).map(lambda n: n / 4)
samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
        "top_k": st.integers(0, 12),
        "top_p": st.sampled_from([0.1, 0.37, 0.613, 0.9017, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.013, 0.11, 0.53, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.25, 2.0]),
        "presence_penalty": st.sampled_from([0.0, 0.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.25, 2.0, -0.5]),
        "logit_bias": st.dictionaries(st.integers(0, 7), st.integers(-12, 12).map(lambda n: n / 4), max_size=3),
        "seed": st.integers(-(2**63), 2**63 - 1),
    }
)


@settings(deadline=None, max_examples=300)
@given(
    steps=st.lists(st.lists(quarters, min_size=8, max_size=8), min_size=1, max_size=5),
    how=samplings,
    prompt=st.lists(st.integers(0, 7), max_size=5),
)
def test_each_token_is_the_one_that_the_slow_chain_draws_with_the_same_random_numbers(
    steps: list[list[float]], how: dict[str, Any], prompt: list[int]
) -> None:
    sampling = Sampling(**how)
    chooser, said = TokenSampler(sampling, prompt, 8), list[int]()
    random = np.random.default_rng(how["seed"] % 2**64)
    for scores in steps:
        share = probabilities(scores, sampling, prompt, said)
        uniform = random.random() if sampling.temperature else 0.0
        got = chooser.choose(np.array(scores, np.float32)).token
        if not sampling.temperature:  # two may be as likely, to the roundings of float32
            changed = penalized(scores, sampling, prompt, said)
            assert changed[got] > max(changed) - 1e-5
            said.append(got)
            continue
        if got != drawn(share, uniform):  # the number lies on the border of two tokens, to the roundings of float32
            assert min(abs(uniform - sum(share[: token + 1])) for token in range(8)) < 1e-5
        assert share[got] > 0
        said.append(got)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    top_p=st.floats(0.05, 0.999),
    top_k=st.sampled_from([0, 1, 7, 1500, 5000]),
    min_p=st.sampled_from([0.0, 1e-4, 0.2]),
)
def test_of_a_large_vocabulary_every_token_comes_from_what_the_slow_filters_leave(
    seed: int, spread: float, top_p: float, top_k: int, min_p: float
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, spread, 2000).astype(np.float32)
    how = Sampling(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    share = np.array(probabilities(scores.tolist(), how))
    chooser = TokenSampler(how, (), len(scores))
    random = np.random.default_rng(seed)
    ends = share.cumsum()
    for _ in range(20):
        uniform, token = random.random(), chooser.choose(scores).token
        # The last token of the nucleus may be another by a rounding, and all parts lie a little aside.
        assert ends[token] - share[token] - 2e-3 <= uniform <= ends[token] + 2e-3
        assert share[token] > 0 or scores[token] >= scores[share > 0].min() - 0.1


def test_temperature_0_takes_the_first_of_the_largest_scores_whatever_the_seed() -> None:
    scores = np.array([1, 5, 3, 5], np.float32)
    assert {sampler(size=4, seed=seed).choose(scores).token for seed in range(5)} == {1}
    assert sampler(size=4, seed=None).choose(scores).token == 1


def test_the_same_seed_draws_the_same_tokens_whatever_others_draw_meanwhile() -> None:
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1}
    alone = tokens_of(sampler(seed=5, **how), SCORES, 50)
    chooser, other = sampler(seed=5, **how), sampler(seed=6, **how)
    together = [(chooser.choose(SCORES).token, other.choose(SCORES).token) for _ in range(50)]
    assert [token for token, _ in together] == alone
    assert [token for _, token in together] != alone


def test_without_a_seed_every_answer_is_another() -> None:
    first, second = (tokens_of(sampler(temperature=5.0, seed=None), SCORES, 60) for _ in range(2))
    assert first != second


@pytest.mark.parametrize("shift", [-1e30, 0.0, 1e4, 1e30])
def test_scores_of_any_size_are_drawn_without_overflow(shift: float) -> None:
    scores = np.array([shift, shift, -1e38], np.float32)
    how: dict[str, Any] = {"temperature": 1.0, "logprobs": 3, "size": 3}
    assert {sampler(seed=seed, **how).choose(scores).token for seed in range(20)} == {0, 1}


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.5}])
def test_the_largest_scores_times_any_penalty_stay_finite(filters: dict[str, Any]) -> None:
    scores = np.array([3e38, 3e38, -3e38], np.float32)
    how: dict[str, Any] = {
        "repetition_penalty": 0.01,
        "temperature": 1e-4,
        "logit_bias": {0: 100.0, 2: -100.0},
        **filters,
    }
    assert {sampler((0, 1, 2), 3, seed=seed, **how).choose(scores).token for seed in range(20)} == {0, 1}


def test_a_tiny_temperature_is_greedy() -> None:
    for temperature in (1e-3, 1e-5, 1e-300):
        assert {sampler(seed=seed, temperature=temperature).choose(SCORES).token for seed in range(50)} == {3}


def test_top_k_of_1_and_a_tiny_top_p_and_min_p_of_1_are_greedy() -> None:
    filters: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-12}, {"min_p": 1.0}]
    for how in filters:
        assert set(tokens_of(sampler(temperature=50.0, **how), SCORES, 50)) == {3}


def test_equally_likely_tokens_are_kept_together() -> None:
    scores = np.array([1, 2, 1, 1, 0], np.float32)
    assert set(tokens_of(sampler(size=5, temperature=2.0, top_k=2), scores, 200)) == {0, 1, 2, 3}
    assert set(tokens_of(sampler(size=5, temperature=2.0, top_p=0.5), scores, 200)) == {0, 1, 2, 3}


def test_a_token_of_no_weight_is_never_drawn() -> None:
    scores = np.full(5000, -1000.0, np.float32)
    scores[[0, 2047, 2048]] = 0
    assert set(tokens_of(sampler(size=5000, temperature=1.0), scores, 300)) == {0, 2047, 2048}


def test_the_presence_penalty_counts_the_answer_and_not_the_prompt() -> None:
    scores = np.array([1.0, 0.5, 0.0], np.float32)
    assert tokens_of(sampler((0, 0, 0), 3, presence_penalty=0.75), scores, 4) == [0, 1, 0, 0]
    assert tokens_of(sampler((0, 0, 0), 3, repetition_penalty=4.0), scores, 4) == [1, 0, 0, 0]


def test_the_repetition_penalty_makes_scores_of_either_sign_smaller() -> None:
    scores = np.array([-1.0, -1.5, -3.0], np.float32)
    assert tokens_of(sampler((), 3, repetition_penalty=2.0), scores, 3) == [0, 1, 0]
    assert tokens_of(sampler((), 3, repetition_penalty=2.0), scores + 4, 3) == [0, 1, 0]


def test_the_frequency_penalty_grows_with_every_time() -> None:
    scores = np.array([1.0, 0.0], np.float32)
    assert tokens_of(sampler((), 2, frequency_penalty=0.4), scores, 7) == [0, 0, 0, 1, 0, 1, 0]


def test_log_probabilities_are_the_models_own_whatever_is_done_to_its_scores() -> None:
    how: dict[str, Any] = {
        "temperature": 0.3,
        "top_k": 2,
        "repetition_penalty": 3.0,
        "logit_bias": {6: 50.0},
        "logprobs": 3,
    }
    chosen = sampler((3, 0), **how).choose(SCORES)
    expected = np.log(softmax(SCORES.tolist()))
    assert chosen.token == 6
    assert [token for token, _ in chosen.top] == [3, 0, 7]
    got = [chosen.logprob, *(logprob for _, logprob in chosen.top)]
    np.testing.assert_allclose(got, expected[[6, 3, 0, 7]], **TOLERANCE["float32"])


def test_as_many_log_probabilities_come_as_were_asked_for() -> None:
    assert math.isnan(sampler().choose(SCORES).logprob)
    assert sampler().choose(SCORES).top == ()
    none = sampler(logprobs=0).choose(SCORES)
    assert none.top == ()
    assert none.logprob == pytest.approx(math.log(softmax(SCORES.tolist())[3]), rel=1e-6)
    assert len(sampler(logprobs=20).choose(SCORES).top) == len(SCORES)
    equal = sampler(logprobs=2).choose(np.zeros(8, np.float32))
    assert [token for token, _ in equal.top] == [0, 1]


def test_the_scores_themselves_are_left_as_they_are() -> None:
    scores = SCORES.copy()
    scores.flags.writeable = False
    how: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 4,
        "repetition_penalty": 2.0,
        "logit_bias": {0: 1.0},
        "logprobs": 5,
    }
    tokens_of(sampler((1, 2), **how), scores, 5)


def test_a_bias_of_a_token_that_the_base_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^logit_bias names token 8; the base's tokens are 0 to 7$"):
        sampler(logit_bias={2: 1.0, 8: 1.0})


def test_the_reference_itself_changes_scores_as_its_papers_say() -> None:
    how = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 1.0})
    assert penalized([4.0, -4.0, 4.0, 4.0], how, [0, 1], [2, 2]) == [2.0, -8.0, 2.0 - 0.5 - 0.5, 5.0]
