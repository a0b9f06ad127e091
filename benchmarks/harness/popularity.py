"""Which adapters requests ask for: named workloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Workload = Callable[[int, int, np.random.Generator], NDArray[np.int64]]

_EXPONENT = 1.1


def uniform(adapters: int, requests: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The adapter of each request, all of them as likely."""
    return generator.integers(0, adapters, requests)


def zipf(adapters: int, requests: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The adapter of each request, number k with a probability in proportion to (k + 1)^-1.1."""
    weights = np.arange(1, adapters + 1, dtype=np.float64) ** -_EXPONENT
    return generator.choice(adapters, requests, p=weights / weights.sum()).astype(np.int64)


WORKLOADS: Mapping[str, Workload] = MappingProxyType({"uniform": uniform, "zipf": zipf})
