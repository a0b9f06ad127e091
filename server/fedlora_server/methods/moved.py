"""What an update on an earlier adapter means to the present one: the change that it made, added to what is there now.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff), 2022 (arXiv:2106.06639): the server
adds the mean of the changes, each times s(tau) = 1 / sqrt(1 + tau) after tau commits. So an update x_k on x_t counts as

    x_now + s (x_k - x_t)                    x the factors A and B, where the rounds keep components
    B_now A_now + s (B_k A_k - B_t A_t)      the products, where a round makes its components anew: joined, of rank 3 r

With tau = 0 either one is the update itself. An update of a smaller rank counts as zero in the components that it lacks.
"""

# O out features, I in features, R rank

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.ranks import with_ranks
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Moved(Adapter):
    """An update whose factors were moved, and beside them the product that it stands for: these differ a little."""

    products: Adapter


def products_of(adapter: Adapter) -> Adapter:
    """The adapter with the products that an update stands for."""
    return adapter.products if isinstance(adapter, Moved) else adapter


def moved_factors(update: Adapter, then: Adapter, now: Adapter, factor: float) -> Adapter:
    """A_now + s (A_k - A_t) and B_now + s (B_k - B_t)."""
    pairs = {}
    for module, pair in now.pairs.items():
        own, before = update.pairs[module], then.pairs[module]
        lora_A = pair.lora_A + np.float32(factor) * (_padded(own.lora_A, before.lora_A.shape) - before.lora_A)
        lora_B = pair.lora_B + np.float32(factor) * (_padded(own.lora_B, before.lora_B.shape) - before.lora_B)
        pairs[module] = LoraPair(lora_A, lora_B)
    return Adapter(now.config, pairs)


def moved_products(update: Adapter, then: Adapter, now: Adapter, factor: float) -> Adapter:
    """B_now A_now + s (B_k A_k - B_t A_t) of each module, as joined factors.

    B_k A_k - B_t A_t = (B_k - B_t) A_k + B_t (A_k - A_t): no digits are lost where the change is small beside what it
    changes. Terms that are zero are left out.
    """
    pairs, s = {}, np.float32(factor)
    for module, pair in now.pairs.items():
        own, before = update.pairs[module], then.pairs[module]
        lora_A, lora_B = _padded(own.lora_A, before.lora_A.shape), _padded(own.lora_B, before.lora_B.shape)
        terms = [
            (pair.lora_B, pair.lora_A),
            (s * (lora_B - before.lora_B), lora_A),
            (s * before.lora_B, lora_A - before.lora_A),
        ]
        terms = [term for term in terms if term[0].any() and term[1].any()] or terms[:1]
        pairs[module] = LoraPair(np.concatenate([A for _, A in terms]), np.concatenate([B for B, _ in terms], 1))
    return Adapter(with_ranks(now.config, {module: pair.rank for module, pair in pairs.items()}), pairs)


def moved_both(update: Adapter, then: Adapter, now: Adapter, factor: float) -> Moved:
    """The moved factors, which a mean of factors takes, with the moved products, which are exact."""
    factors = moved_factors(update, then, now, factor)
    return Moved(factors.config, factors.pairs, moved_products(update, then, now, factor))


def _padded(array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if array.shape == shape:
        return array
    padded = np.zeros(shape, np.float32)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
