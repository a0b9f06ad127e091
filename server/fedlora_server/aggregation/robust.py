"""Robust rules: which updates of a round count, and how much, when some devices may lie.

Every rule looks at the products gamma B A alone, through their Gram matrix G [N, N], G_kl = <P_k, P_l>, from the factors:
(B M, M^-1 A) is the same update, and a rule that looked at factors could be led anywhere by a choice of M. Devices count
alike, for a number of examples is a device's own word. All need every update of the round: the memory is N adapters, where
the methods themselves need less.
"""

# N updates, P_k the change that update k makes to the product that went down

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from fedlora.config.run import AggregationConfig
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

Gram = NDArray[np.float64]  # [N, N]
Weights = NDArray[np.float64]  # [N], 0 for an update that does not count
Rule = Callable[[Gram, AggregationConfig], Weights]

_WEISZFELD_STEPS, _CLOSE, _SMOOTHING = 1000, 1e-5, 1e-6  # the last two: of the median distance


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


def norm_bound(gram: Gram, settings: AggregationConfig) -> Weights:
    """Leave out what is larger than `norm_bound` times the median norm of the round.

    After Sun et al., "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963), who clip to a given norm: an
    update that was turned round and clipped still pulls back, so here it does not count.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    return np.where(norms <= settings.norm_bound * np.median(norms), 1.0, 0.0)


def multi_krum(gram: Gram, settings: AggregationConfig) -> Weights:
    """Of N updates keep the N - f with the least score: the sum of squared distances to the N - f - 2 nearest others.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017 (arXiv:1703.02757),
    with f = byzantine_share N, rounded up, but never more than (N - 3) / 2: the rule holds for N > 2 f + 2 only.
    """
    count = len(gram)
    liars = max(0, min(math.ceil(settings.byzantine_share * count - 1e-9), (count - 3) // 2))
    if not liars:
        return np.ones(count)
    distances = _squared_distances(gram)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : count - liars - 2].sum(1)
    weights = np.zeros(count)
    weights[np.argsort(scores, kind="stable")[: count - liars]] = 1
    return weights


def geometric_median(gram: Gram, settings: AggregationConfig) -> Weights:
    """The weights of the mean that is the geometric median: the point with the least sum of distances.

    Pillutla et al., "Robust Aggregation for Federated Learning" (RFA), 2022 (arXiv:1912.13445): Weiszfeld's iteration with
    smoothed distances. It begins at the update that is closest to all, and ends when the point moves by less than 1e-5 of
    the median distance: no liar, however large, has a say in either.
    """
    distances = np.sqrt(_squared_distances(gram))
    first = int(np.argmin(distances.sum(1)))
    scale = float(np.median(distances[first])) or float(distances[first].max()) or 1.0
    beta = np.zeros(len(gram))
    beta[first] = 1
    for _ in range(_WEISZFELD_STEPS):
        squared = np.diag(gram) - 2 * gram @ beta + beta @ gram @ beta
        closer = 1 / np.maximum(np.sqrt(np.maximum(squared, 0)), _SMOOTHING * scale)
        closer /= closer.sum()
        step, beta = closer - beta, closer
        if step @ gram @ step <= (_CLOSE * scale) ** 2:
            break
    return beta


def _squared_distances(gram: Gram) -> Gram:
    norms = np.diag(gram)
    return np.maximum(norms[:, None] + norms[None] - 2 * gram, 0)


RULES: Mapping[str, Rule] = MappingProxyType(
    {"norm-bound": norm_bound, "multi-krum": multi_krum, "geometric-median": geometric_median}
)
