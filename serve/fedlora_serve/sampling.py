"""Choose the next token from its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fedlora.errors import ConfigError
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0  # 0: the likeliest token
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature must be from 0 (greedy) to 100, got {self.temperature}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")


def choose(scores: NDArray[np.float32], temperature: float, generator: np.random.Generator) -> int:  # scores [V]
    """A token drawn from softmax(scores / temperature); at temperature 0 the first of the largest scores."""
    if temperature == 0:
        return int(scores.argmax())
    shifted = (scores.astype(np.float64) - scores.max()) / temperature
    weights = np.exp(shifted)
    return int(generator.choice(len(scores), p=weights / weights.sum()))
