"""The Gram matrix of the changes that updates make: what robust rules see of a round, whatever factors a device chose.

A change is that of all weights of the model which an update makes others: products and extra tensors together.
"""

# N updates, P_k the change that update k makes to the product that went down

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

Gram = NDArray[np.float64]  # [N, N], G_kl = <P_k, P_l>


def gram_of_changes(adapters: Sequence[Adapter], down: Adapter) -> Gram:
    """<P_k, P_l> of what each adapter changed about `down`, all modules and extra tensors together."""
    count = len(adapters) + 1
    gram = np.zeros((count, count))
    for module in down.pairs:
        products = [adapter.product(module) for adapter in (*adapters, down)]
        B, A = (
            np.concatenate(parts).astype(np.float64) for parts in zip(*((p.B.T, p.A) for p in products), strict=True)
        )
        begins = np.cumsum([0, *(product.inner for product in products[:-1])])
        for k, (begin, product) in enumerate(zip(begins, products, strict=True)):
            mine = slice(begin, begin + product.inner)
            gram[k] += np.add.reduceat(((B[mine] @ B.T) * (A[mine] @ A.T)).sum(0), begins)
    gram = (gram + gram.T) / 2
    centred: Gram = gram[:-1, :-1] - gram[:-1, -1:] - gram[-1:, :-1] + gram[-1, -1]
    for name, before in down.extras.items():
        changes = np.stack([(adapter.extras[name] - before).ravel() for adapter in adapters]).astype(np.float64)
        centred += changes @ changes.T
    return centred


def norm_of_change(adapter: Adapter, down: Adapter) -> float:
    """||P||_F of what an adapter of the same ranks, or larger ones, changed about `down`, all modules and extras together.

    B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0): no digits are lost where the change is small beside what it changes.
    """
    squared = 0.0
    for module, before in down.pairs.items():
        pair, scaling = adapter.pairs[module], adapter.config.scaling_of(module)
        B_k, A_k = pair.lora_B[:, : before.rank], pair.lora_A[: before.rank]
        B = np.concatenate([B_k - before.lora_B, before.lora_B, pair.lora_B[:, before.rank :]], 1)  # [O, 2 R + more]
        A = np.concatenate([A_k, A_k - before.lora_A, pair.lora_A[before.rank :]])
        squared += scaling**2 * float(np.vdot((B.T @ B).astype(np.float64), (A @ A.T).astype(np.float64)))
    for name, array in down.extras.items():
        change = (adapter.extras[name] - array).astype(np.float64)
        squared += float(np.vdot(change, change))
    return math.sqrt(max(0.0, squared))


def squared_distances(gram: Gram) -> Gram:
    """||P_k - P_l||_F^2"""
    norms = np.diag(gram)
    return np.maximum(norms[:, None] + norms[None] - 2 * gram, 0)


def seen_from(gram: Gram, origin: int) -> Gram:
    """<P_k - P_o, P_l - P_o>"""
    seen: Gram = gram - gram[:, [origin]] - gram[[origin]] + gram[origin, origin]
    return seen
