"""The robust rules that fedlora brings: the entry points of the group fedlora.robust."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_server.aggregation.gram import Gram, norm_of_change, seen_from, squared_distances
from fedlora_server.aggregation.robust_aggregator import MedianAggregator, Weights
from fedlora_server.aggregation.robust_rule import RobustRule
from fedlora_server.methods.method import Aggregator

log = logging.getLogger("fedlora.server")

_WEISZFELD_STEPS = 5000
_BALANCED = 1e-6  # of an update's unit vector: what may be left of their sum
_ON_IT = 1e-9  # of the median distance


class NormBound(RobustRule):
    """Leave out what is larger than `norm_bound` times the median norm of the round.

    After Sun et al., "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963), who clip to a given norm: an
    update that was turned round and clipped still pulls back, so here it does not count.
    """

    uses = frozenset({"norm_bound"})
    takes_examples = True

    def weights(self, gram: Gram) -> Weights:
        return self._within(np.sqrt(np.maximum(np.diag(gram), 0)))

    def weights_of(self, adapters: Sequence[Adapter], down: Adapter) -> Weights:
        return self._within(np.array([norm_of_change(adapter, down) for adapter in adapters]))

    def _within(self, norms: NDArray[np.float64]) -> Weights:
        return np.where(norms <= self.settings.norm_bound * np.median(norms), 1.0, 0.0)


class MultiKrum(RobustRule):
    """Keep the N - f of N updates with the least score: the sum of squared distances to the N - f - 2 nearest others.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017 (arXiv:1703.02757),
    with f = byzantine_share N, rounded up, but never more than (N - 3) / 2: the rule holds for N > 2 f + 2 only.
    """

    uses = frozenset({"byzantine_share"})

    def weights(self, gram: Gram) -> Weights:
        count = len(gram)
        liars = max(0, min(math.ceil(self.settings.byzantine_share * count - 1e-9), (count - 3) // 2))
        if not liars:
            return np.ones(count)
        distances = squared_distances(gram)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances, axis=1)[:, : count - liars - 2].sum(1)
        weights = np.zeros(count)
        weights[np.argsort(scores, kind="stable")[: count - liars]] = 1
        return weights


class GeometricMedian(RobustRule):
    """The weights of the mean that is the geometric median: the point with the least sum of distances.

    Pillutla et al., "Robust Aggregation for Federated Learning" (RFA), 2022 (arXiv:1912.13445). A point y is the median
    where the unit vectors from it to the updates that lie elsewhere sum to no more than the number of those that lie on it.
    Of the updates themselves only the one closest to all can be it. Where it is not, Weiszfeld's iteration begins at the
    mean; where it meets an update it goes on as Vardi and Zhang do, "The multivariate L1-median and associated data depth",
    2000. It ends where the condition holds, and no liar, however large, has a say in that.
    """

    def weights(self, gram: Gram) -> Weights:
        count = len(gram)
        closest = int(np.argmin(np.sqrt(squared_distances(gram)).sum(1)))
        gram = seen_from(gram, closest)  # so that no digit is lost to what all have in common
        scale = float(np.median(np.sqrt(np.diag(gram)))) or float(np.sqrt(np.diag(gram).max())) or 1.0
        beta = np.zeros(count)
        beta[closest] = 1
        pull, on_it = _pull(gram, beta, scale)
        if _length(pull, gram) <= on_it.sum() * (1 + _BALANCED):
            return np.asarray(on_it / on_it.sum())
        beta = np.full(count, 1 / count)
        for _ in range(_WEISZFELD_STEPS):
            pull, on_it = _pull(gram, beta, scale)
            left = _length(pull, gram) - on_it.sum()
            if left <= _BALANCED * count:
                return beta
            beta = beta + pull * (left / (left + on_it.sum()) / _closeness(gram, beta, scale).sum())
        log.warning("geometric-median: not at rest after %d steps: %.2g of 1 is left", _WEISZFELD_STEPS, left / count)
        return beta


def _closeness(gram: Gram, beta: Weights, scale: float) -> Weights:
    """1 / ||x_i - y|| for y = sum_k beta_k x_k, and 0 where x_i lies on y."""
    distances = np.sqrt(np.maximum(np.diag(gram) - 2 * gram @ beta + beta @ gram @ beta, 0))
    return np.divide(1, distances, out=np.zeros_like(distances), where=distances > _ON_IT * scale)


def _pull(gram: Gram, beta: Weights, scale: float) -> tuple[Weights, Weights]:
    """The sum of the unit vectors from y to the updates elsewhere, in coefficients of the updates; and 1 for those on y."""
    closeness = _closeness(gram, beta, scale)
    return closeness - closeness.sum() * beta, (closeness == 0).astype(np.float64)


def _length(coefficients: Weights, gram: Gram) -> float:
    return math.sqrt(max(0.0, float(coefficients @ gram @ coefficients)))


class Median(RobustRule):
    """The coordinate-wise median of the products takes the place of their mean."""

    replaces_mean = True

    def aggregator(self, inner: Aggregator, down: Adapter) -> Aggregator:
        return MedianAggregator(self.lora)
