"""Sampling as its definitions say, slowly: Python's own numbers, one token after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedlora_serve.text.sampling import Sampling


def penalized(scores: Sequence[float], sampling: Sampling, prompt: Sequence[int], said: Sequence[int]) -> list[float]:
    result = list(scores)
    for token in range(len(scores)):
        if token in prompt or token in said:
            factor = sampling.repetition_penalty
            result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
        result[token] -= sampling.presence_penalty * (token in said)
        result[token] -= sampling.frequency_penalty * list(said).count(token)
        result[token] += sampling.logit_bias.get(token, 0.0)
    return result


def probabilities(
    scores: Sequence[float], sampling: Sampling, prompt: Sequence[int] = (), said: Sequence[int] = ()
) -> list[float]:
    """The probability of each token to be chosen next."""
    changed = penalized(scores, sampling, prompt, said)
    if sampling.temperature == 0:
        return [float(token == changed.index(max(changed))) for token in range(len(changed))]
    share = softmax([score / sampling.temperature for score in changed])
    share = normalized([p if p >= sampling.min_p * max(share) else 0.0 for p in share])
    if sampling.top_k:
        least = sorted(share, reverse=True)[: sampling.top_k][-1]
        share = normalized([p if p >= least else 0.0 for p in share])
    if sampling.top_p < 1:
        total, least = 0.0, 0.0
        for p in sorted(share, reverse=True):
            total, least = total + p, p
            if total >= sampling.top_p:
                break
        share = normalized([p if p >= least else 0.0 for p in share])
    return share


def softmax(scores: Sequence[float]) -> list[float]:
    largest = max(scores)
    return normalized([math.exp(score - largest) for score in scores])


def normalized(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def drawn(share: Sequence[float], uniform: float) -> int:
    """The token in whose part of the probabilities, laid side by side, `uniform` lies."""
    total = 0.0
    for token, p in enumerate(share):
        total += p
        if uniform < total:
            return token
    return max(token for token, p in enumerate(share) if p)
