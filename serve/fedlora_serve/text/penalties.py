"""Scores of tokens that were said before, made smaller or larger.

repetition   s > 0: s / r;  s <= 0: s * r      tokens of the prompt and the answer      CTRL, arXiv:1909.05858
presence     s - p                             tokens of the answer                     OpenAI's interface
frequency    s - f * (times in the answer)     tokens of the answer                     OpenAI's interface
bias         s + b                             the tokens that are named                OpenAI's interface
"""

# V vocabulary, K tokens whose scores change

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from fedlora.errors import ConfigError
from numpy.typing import NDArray

from fedlora_serve.text.sampling import Sampling

_LARGEST = float(np.finfo(np.float32).max)


def check_tokens(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Raises ConfigError where one of the tokens that a parameter names is none of the base's."""
    wrong = [token for token in tokens if token >= vocab_size]
    if wrong:
        raise ConfigError(f"{name} names token {wrong[0]}; the base's tokens are 0 to {vocab_size - 1}")


class Penalties:
    """The penalties and biases of one answer, in this order. Only the scores of the K tokens concerned are touched."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        """Raises ConfigError where a bias names a token that the base has not."""
        check_tokens("logit_bias", sampling.logit_bias, vocab_size)
        self._repetition = sampling.repetition_penalty
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._counting = (self._repetition, self._presence, self._frequency) != (1, 0, 0)
        self.idle = not self._counting and not sampling.logit_bias
        self._biased = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float64)
        # Only a repetition penalty asks for the prompt.
        said = np.unique(np.asarray(prompt, np.int64)) if self._repetition != 1 else np.zeros(0, np.int64)
        self._tokens: NDArray[np.int64] = said  # [K]
        self._times = np.zeros(len(self._tokens))  # [K], in the answer
        self._places = {int(token): place for place, token in enumerate(self._tokens)}

    def add(self, token: int) -> None:
        """One more token of the answer."""
        if not self._counting:
            return
        place = self._places.setdefault(token, len(self._tokens))
        if place == len(self._tokens):
            self._tokens, self._times = np.append(self._tokens, token), np.append(self._times, 0.0)
        self._times[place] += 1

    def apply(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:  # [V] -> [V]
        """The changed scores, finite too; `scores` itself where nothing changes."""
        if self.idle:
            return scores
        changed = scores.copy()
        said = scores[self._tokens].astype(np.float64)
        said = np.where(said > 0, said / self._repetition, said * self._repetition)
        said -= self._presence * (self._times > 0) + self._frequency * self._times
        changed[self._tokens] = np.clip(said, -_LARGEST, _LARGEST)
        biased = changed[self._biased].astype(np.float64) + self._biases
        changed[self._biased] = np.clip(biased, -_LARGEST, _LARGEST)
        return changed
