"""The robust rules that fedlora brings: the entry points of the group fedlora.robust."""

from __future__ import annotations

import math

import numpy as np
from fedlora.lora.adapter import Adapter

from fedlora_server.aggregation.gram import Gram, squared_distances
from fedlora_server.aggregation.robust_aggregator import MedianAggregator, Weights
from fedlora_server.aggregation.robust_rule import RobustRule
from fedlora_server.methods.method import Aggregator

_WEISZFELD_STEPS, _CLOSE, _SMOOTHING = 1000, 1e-5, 1e-6  # the last two: of the median distance


class NormBound(RobustRule):
    """Leave out what is larger than `norm_bound` times the median norm of the round.

    After Sun et al., "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963), who clip to a given norm: an
    update that was turned round and clipped still pulls back, so here it does not count.
    """

    uses = frozenset({"norm_bound"})

    def weights(self, gram: Gram) -> Weights:
        norms = np.sqrt(np.maximum(np.diag(gram), 0))
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

    Pillutla et al., "Robust Aggregation for Federated Learning" (RFA), 2022 (arXiv:1912.13445): Weiszfeld's iteration with
    smoothed distances. It begins at the update that is closest to all, and ends when the point moves by less than 1e-5 of
    the median distance: no liar, however large, has a say in either.
    """

    def weights(self, gram: Gram) -> Weights:
        distances = np.sqrt(squared_distances(gram))
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


class Median(RobustRule):
    """The coordinate-wise median of the products takes the place of their mean."""

    replaces_mean = True

    def aggregator(self, inner: Aggregator, down: Adapter) -> Aggregator:
        return MedianAggregator(self.lora)
