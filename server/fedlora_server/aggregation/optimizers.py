"""Server optimizers: the change that a round made, taken as a gradient, moves the adapter with a memory of earlier rounds.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019
(arXiv:1909.06335), for fedavgm; Reddi et al., "Adaptive Federated Optimization", 2021 (arXiv:2003.00295), for fedadam and
fedyogi. With the change D = mean - x, factor by factor and element by element:

    fedavgm    m = beta1 m + D                                                           x += lr m
    fedadam    m = beta1 m + (1 - beta1) D    v = beta2 v + (1 - beta2) D^2              x += lr m / (sqrt(v) + tau)
    fedyogi    m = beta1 m + (1 - beta1) D    v = v - (1 - beta2) D^2 sign(v - D^2)      x += lr m / (sqrt(v) + tau)

m begins at 0 and v at tau^2. A method whose components are others in every round (svd, raflora) has no factors that could
have a memory: fedavgm, which is linear, takes the products instead, D = B A (mean) - B A (x), and keeps m as the best
approximation of twice the rank. Extra tensors have memories of their own with every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from fedlora.config.run import AggregationConfig
from fedlora.lora.adapter import Adapter, Extras, LoraPair
from fedlora.lora.algebra import Product, concatenate, truncated
from fedlora.wire.task import FactorSet
from numpy.typing import NDArray

from fedlora_server.methods.svd import as_pair

Array = NDArray[np.float32]
USES: Mapping[str, frozenset[str]] = MappingProxyType(  # the keys of the section `aggregation` that each one uses
    {
        "none": frozenset(),
        "fedavgm": frozenset({"lr", "beta1"}),
        "fedadam": frozenset({"lr", "beta1", "beta2", "tau"}),
        "fedyogi": frozenset({"lr", "beta1", "beta2", "tau"}),
    }
)
ADAPTIVE = ("fedadam", "fedyogi")  # those that go element by element
Moments = dict[
    str, Array
]  # "m MODULE A": the shape of that factor, or [2 R, I] for a product; "m TENSOR" of an extra one


def optimized(
    before: Adapter,
    mean: Adapter,
    moments: Mapping[str, Array],
    settings: AggregationConfig,
    factors: FactorSet,  # that the round trained
    *,
    keeps_components: bool,
) -> tuple[Adapter, Moments]:
    """The adapter after the step from `before` towards `mean`, and the moments after it."""
    kept, pairs = dict(moments), {}
    if not keeps_components:
        pairs = {module: _step_of_product(before, mean, module, kept, settings) for module in mean.pairs}
        return Adapter(mean.config, pairs, extras=_extras_after(before, mean, kept, settings)), kept
    for module, pair in mean.pairs.items():
        arrays = {"A": pair.lora_A, "B": pair.lora_B}
        old = {"A": before.pairs[module].lora_A, "B": before.pairs[module].lora_B}
        for factor in factors:
            arrays[factor] = old[factor] + _step(arrays[factor] - old[factor], f"{module} {factor}", kept, settings)
        pairs[module] = LoraPair(arrays["A"], arrays["B"])
    return Adapter(mean.config, pairs, extras=_extras_after(before, mean, kept, settings)), kept


def _extras_after(before: Adapter, mean: Adapter, moments: Moments, settings: AggregationConfig) -> Extras:
    """The extra tensors after their step; their moments are replaced in `moments`."""
    return {
        name: before.extras[name] + _step(array - before.extras[name], name, moments, settings)
        for name, array in mean.extras.items()
    }


def _step_of_product(
    before: Adapter, mean: Adapter, module: str, moments: Moments, settings: AggregationConfig
) -> LoraPair:
    """fedavgm on gamma B A, in factored form. The momentum is replaced in `moments`."""
    now, rank = before.product(module), before.pairs[module].rank
    names = [f"m {module} {factor}" for factor in "BA"]
    change = [mean.product(module), now.scaled(-1)]
    if names[0] in moments:
        change.append(Product(moments[names[0]] * np.float32(settings.beta1), moments[names[1]]))
    momentum = truncated(concatenate(change), min(2 * rank, *before.pairs[module].shape))
    moments |= {name: np.asarray(part, np.float32) for name, part in zip(names, (momentum.B, momentum.A), strict=True)}
    return as_pair(truncated(concatenate([now, momentum.scaled(settings.lr)]), rank), mean.config.scaling_of(module))


def _step(change: Array, name: str, moments: Moments, settings: AggregationConfig) -> Array:
    """The step for one factor or extra tensor; its moments are replaced in `moments`."""
    beta1, beta2, tau = settings.beta1, settings.beta2, settings.tau
    first = moments.get(f"m {name}", np.zeros_like(change))
    if settings.optimizer == "fedavgm":
        moments[f"m {name}"] = first = (beta1 * first + change).astype(np.float32)
        return (settings.lr * first).astype(np.float32)
    moments[f"m {name}"] = first = (beta1 * first + (1 - beta1) * change).astype(np.float32)
    second, squared = moments.get(f"v {name}", np.full_like(change, tau**2)), np.square(change)
    if settings.optimizer == "fedadam":
        second = (beta2 * second + (1 - beta2) * squared).astype(np.float32)
    else:
        second = (second - (1 - beta2) * squared * np.sign(second - squared)).astype(np.float32)
    moments[f"v {name}"] = second
    return (settings.lr * first / (np.sqrt(second) + tau)).astype(np.float32)
