"""Student's distribution: how far the mean of a few seeds may be from what many would give.

For whole degrees of freedom n its probabilities are finite sums (Abramowitz and Stegun, 26.7.3 and 26.7.4), with
theta = atan(t / sqrt(n)):

    odd n   A(t) = 2/pi (theta + sin theta (cos theta + 2/3 cos^3 theta + ... ))
    even n  A(t) = sin theta (1 + 1/2 cos^2 theta + 1*3/(2*4) cos^4 theta + ... )

A is the probability of a value between -t and t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedlora.errors import ConfigError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what it may be with a confidence of 95%; None where there is but one value."""

    mean: float
    low: float | None
    high: float | None
    p: float | None  # of a mean at least as far from 0, if what is measured were 0
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def between(t: float, freedom: int) -> float:
    """The probability of a value from -|t| to |t|. Raises ConfigError for no degree of freedom."""
    if freedom < 1:
        raise ConfigError(f"Student's distribution with {freedom} degrees of freedom; expected at least 1")
    theta = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    is_odd = freedom % 2 == 1
    term, total = cosine if is_odd else 1.0, 0.0
    for k in range(2 if is_odd else 1, freedom, 2):  # each term's numerator; the next odd or even number divides it
        total += term
        term *= k / (k + 1) * cosine * cosine
    return 2 / math.pi * (theta + sine * total) if is_odd else sine * total


def quantile(probability: float, freedom: int) -> float:
    """The t with `probability` between -t and t. Raises ConfigError for what is none."""
    if not 0 < probability < 1:
        raise ConfigError(f"a probability of {probability}; expected one between 0 and 1")
    low, high = 0.0, math.pi / 2  # the angle of t, which is bounded
    for _ in range(200):
        middle = (low + high) / 2
        if between(math.tan(middle) * math.sqrt(freedom), freedom) < probability:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def interval(values: Sequence[float]) -> Interval:
    """mean -+ t s / sqrt(n) of a sample of at least one. Raises ConfigError for none."""
    count = len(values)
    if not count:
        raise ConfigError("the mean of no values; expected at least one")
    mean = fmean(values)
    if count == 1:
        return Interval(mean, None, None, None, 1)
    error = stdev(values) / math.sqrt(count)
    reach = quantile(CONFIDENCE, count - 1) * error
    p = 1 - between(mean / error, count - 1) if error else float(mean == 0)
    return Interval(mean, mean - reach, mean + reach, p, count)


def paired(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """That of the differences one - other, pair by pair. Raises ConfigError for sequences of two lengths."""
    if len(ones) != len(others):
        raise ConfigError(f"{len(ones)} values beside {len(others)}; expected pairs")
    return interval([one - other for one, other in zip(ones, others, strict=True)])
