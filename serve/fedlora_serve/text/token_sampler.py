"""The next token of one answer, from its scores.

    penalties, biases, none that end it -> temperature -> min-p -> top-k -> top-p -> a draw

Each definition is cited where it is computed: `penalties`, `filters`. Min-p and top-k are both floors, so their order does
not matter; top-p is a share of what they have left.

It runs between two steps of the model, for every row of the batch. So what cannot matter is left out before anything is
sorted, no Python loop runs over the vocabulary, and float64 is for sums and for the few tokens that matter.
"""

# V vocabulary, N tokens that are left

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora_serve.text.filters import min_p_floor, top_k_floor, top_p_floor
from fedlora_serve.text.penalties import Penalties, check_tokens
from fedlora_serve.text.running_sum import first_above
from fedlora_serve.text.sampling import ChosenToken, Sampling

_LEAST = float(np.finfo(np.float32).min)
_GREEDY = 1e-5  # at and below this temperature the likeliest token is taken: float32 tells no more apart


class TokenSampler:
    """Chooses the tokens of one answer, one after another. The same seed and scores give the same tokens."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int, ends: Iterable[int] = ()) -> None:
        """`prompt` are its tokens, for the repetition penalty; `ends` are the tokens that end it, of which none is chosen
        before there are `min_tokens` others. Raises ConfigError where a bias or a stop names no token."""
        self._sampling, self._penalties = sampling, Penalties(sampling, prompt, vocab_size)
        check_tokens("stop_token_ids", sampling.stop_token_ids, vocab_size)
        self._ends = np.array(sorted({*ends, *sampling.stop_token_ids}), np.int64)
        self._left = sampling.min_tokens if len(self._ends) else 0  # tokens to come before it may end
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)

    def choose(self, scores: NDArray[np.float32]) -> ChosenToken:  # finite, [V]
        """The next token of the answer, which counts as said.

        Log-probabilities are those of the model's own distribution, before penalties, temperature and filters, as OpenAI
        and vLLM report them. Where none were asked for, the token's is not computed: it is NaN.
        """
        adjusted = self._penalties.apply(scores)
        if self._left:
            self._left -= 1
            adjusted = adjusted.copy()
            adjusted[self._ends] = _LEAST
        token = int(adjusted.argmax()) if self._sampling.temperature <= _GREEDY else self._drawn(adjusted)
        self._penalties.add(token)
        if self._sampling.logprobs is None:
            return ChosenToken(token=token, logprob=math.nan, top=())
        return _with_log_probabilities(scores, token, self._sampling.logprobs)

    def _drawn(self, scores: NDArray[np.float32]) -> int:  # [V]
        """A token of those that the filters leave."""
        sampling, largest = self._sampling, float(scores.max())
        floor = min_p_floor(largest, sampling.temperature, sampling.min_p) if sampling.min_p else -math.inf
        if 0 < sampling.top_k < len(scores):
            floor = max(floor, top_k_floor(scores, sampling.top_k))
        tokens = None if floor == -math.inf else np.flatnonzero(scores >= floor)  # [N]; None: all
        weights = _softmax_weights(scores if tokens is None else scores[tokens], largest, sampling.temperature)
        if sampling.top_p < 1:
            weights *= weights >= top_p_floor(weights, sampling.top_p)
        place = _draw(weights, self._random.random())
        return place if tokens is None else int(tokens[place])


def _softmax_weights(scores: NDArray[np.float32], largest: float, temperature: float) -> NDArray[np.float32]:  # [N]
    """exp((scores - largest) / temperature): from 0 to 1, and 1 for the largest."""
    with np.errstate(over="ignore", under="ignore"):  # a score far below the largest has no weight
        weights: NDArray[np.float32] = scores - np.float32(largest)
        weights /= np.float32(temperature)
        return np.exp(weights, out=weights)


def _draw(weights: NDArray[np.float32], uniform: float) -> int:  # [N]
    """The place of the weight in which `uniform` (from 0, below 1) of their sum lies; never one of weight 0."""
    return first_above(weights, uniform * float(weights.sum(dtype=np.float64)))


def _with_log_probabilities(scores: NDArray[np.float32], token: int, count: int) -> ChosenToken:  # [V]
    """`token` with log softmax(scores) of it and of the `count` likeliest; of equal ones the first in the vocabulary."""
    largest = scores.max()
    with np.errstate(over="ignore", under="ignore"):
        total = float(np.exp(scores - largest).sum(dtype=np.float64))
    log_total = float(largest) + math.log(total)
    likeliest: list[int] = []
    if count:
        tokens = np.flatnonzero(scores >= top_k_floor(scores, min(count, len(scores))))
        likeliest = tokens[np.argsort(-scores[tokens], kind="stable")[:count]].tolist()
    return ChosenToken(
        token=token,
        logprob=float(scores[token]) - log_total,
        top=tuple((other, float(scores[other]) - log_total) for other in likeliest),
    )
