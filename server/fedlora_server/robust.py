"""Robust rules: which updates of a round count, and how much, when some devices may lie.

Every rule looks at the products gamma B A alone, through their Gram matrix G [N, N], G_kl = <P_k, P_l>, from the factors:
(B M, M^-1 A) is the same update, and a rule that looked at factors could be led anywhere by a choice of M. All need every
update of the round: the memory is N adapters, where the methods themselves need less.
"""

# N updates, P_k the change that update k makes to the product that went down

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from fedlora.adapter import Adapter
from fedlora.run_config import AggregationConfig
from numpy.typing import NDArray

Gram = NDArray[np.float64]  # [N, N]
Weights = NDArray[np.float64]  # [N]
Rule = Callable[[Gram, Weights, AggregationConfig], Weights]

_WEISZFELD_STEPS, _CLOSE = 100, 1e-6


def gram_of_changes(adapters: Sequence[Adapter], down: Adapter) -> Gram:
    """<P_k, P_l> of what each adapter changed about `down`, all modules together."""
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
    return centred


def norm_bound(gram: Gram, weights: Weights, settings: AggregationConfig) -> Weights:
    """Leave out what is larger than `norm_bound` times the median norm of the round.

    After Sun et al., "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963), who clip to a given norm: an
    update that was turned round and clipped still pulls back, so here it does not count.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    return np.where(norms <= settings.norm_bound * np.median(norms), weights, 0)


def multi_krum(gram: Gram, weights: Weights, settings: AggregationConfig) -> Weights:
    """Of N updates keep the N - f with the least score: the sum of squared distances to the N - f - 2 nearest others.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017 (arXiv:1703.02757),
    with f = byzantine_share N, rounded up.
    """
    count = len(gram)
    liars = math.ceil(settings.byzantine_share * count)
    nearest = max(1, count - liars - 2)
    squared = np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram
    np.fill_diagonal(squared, np.inf)
    scores = np.sort(squared, axis=1)[:, : min(nearest, count - 1)].sum(1) if count > 1 else np.zeros(1)
    kept = np.argsort(scores, kind="stable")[: max(1, count - liars)]
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result


def geometric_median(gram: Gram, weights: Weights, settings: AggregationConfig) -> Weights:
    """The weights of the mean that is the geometric median: the point with the least sum of weighted distances.

    Pillutla et al., "Robust Aggregation for Federated Learning" (RFA), 2022 (arXiv:1912.13445): Weiszfeld's iteration with
    smoothed distances, until no weight changes by more than 1e-6 of all.
    """
    shares = weights / weights.sum()
    beta = shares.copy()
    smallest = 1e-6 * math.sqrt(max(float(np.diag(gram).max()), 0)) or 1.0
    for _ in range(_WEISZFELD_STEPS):
        squared = np.diag(gram) - 2 * gram @ beta + beta @ gram @ beta
        closer = shares / np.maximum(np.sqrt(np.maximum(squared, 0)), smallest)
        closer /= closer.sum()
        moved, beta = np.abs(closer - beta).max(), closer
        if moved < _CLOSE:
            break
    result: Weights = weights.sum() * beta
    return result


RULES: Mapping[str, Rule] = MappingProxyType(
    {"norm-bound": norm_bound, "multi-krum": multi_krum, "geometric-median": geometric_median}
)
