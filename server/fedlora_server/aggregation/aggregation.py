"""A run's aggregation: its method, with what the configuration combines it with. What does not go together is refused."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np
from fedlora.config.run import AggregationConfig, RunConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter
from fedlora.lora.algebra import inner_product
from fedlora.wire.task import FactorSet

from fedlora_server.aggregation.error_sketch import ErrorSketch, SketchedAggregator
from fedlora_server.aggregation.optimizers import Moments, optimized
from fedlora_server.aggregation.robust_aggregator import MedianAggregator, WeighingAggregator
from fedlora_server.methods import find_method
from fedlora_server.methods.method import Aggregator, Global, Method

log = logging.getLogger("fedlora.server")

_SKETCH = 2  # which of a round's random numbers: 0 and 1 are the first adapter's and the sampling's


@dataclass(frozen=True, slots=True)
class State:
    """What a run carries from round to round."""

    now: Global
    moments: Moments = field(default_factory=dict)  # of the server's optimizer


class Aggregation:
    """The rule of a run."""

    def __init__(self, config: RunConfig, first: Adapter) -> None:
        """`first` is the adapter that the run begins with. Raises ConfigError for what does not go together."""
        name, settings = config.server.method, config.aggregation
        self.method = find_method(name)(first.config, settings, config.seed)
        self._config, self._settings, self._first = config, settings, first
        for key, wanted, refusal in (
            ("min_rank", settings.min_rank, self.method.refuses_mixed_ranks),
            ("optimizer", settings.optimizer != "none", self.method.refuses_optimizer),
            ("optimizer", settings.optimizer in ("fedadam", "fedyogi"), self.method.refuses_adaptive),
            ("robust", settings.robust != "none", self.method.refuses_robust),
        ):
            if wanted and refusal:
                raise ConfigError(
                    f"aggregation.{key} is {getattr(settings, key)}, which {name} does not take: {refusal}"
                )
        if settings.min_rank > config.lora.rank:
            raise ConfigError(f"aggregation.min_rank is {settings.min_rank}, above lora.rank, {config.lora.rank}")
        if settings.robust != "none" and (settings.min_rank or settings.weights != "uniform"):
            key, value = ("min_rank", 0) if settings.min_rank else ("weights", "uniform")
            raise ConfigError(
                f"aggregation.robust is {settings.robust}, aggregation.{key} {getattr(settings, key)}: a robust rule "
                f"compares whole updates of devices that count alike; set aggregation.{key} to {value}"
            )
        if settings.robust == "median" and not self.method.takes_products:
            raise ConfigError(
                f"aggregation.robust is median, which takes the place of a mean of products: {name} has none; use svd"
            )
        for key in unused(name, settings):
            log.warning("aggregation.%s is %s, and nothing in this run uses it", key, getattr(settings, key))

    @property
    def factors_down(self) -> FactorSet:
        """What of the adapter goes down: all but what every device makes from the seed."""
        down: dict[str, FactorSet] = {"": "AB", "A": "B", "B": "A"}
        return down[self.method.shared_from_seed()]

    def start(self) -> State:
        return State(self.method.start(self._first))

    def restored(self, committed: Adapter, moments: Moments) -> State:
        """The state whose round committed this adapter."""
        return State(self.method.restored(committed, self._first), moments)

    def committed(self, state: State) -> Adapter:
        """All of the state as one adapter: what is published, measured and served."""
        return self.method.committed(state.now)

    def round(self, state: State, server_round: int) -> Round:
        """A new round from `state`."""
        return Round(self.method, self._config, state, server_round)


class Round:
    """One round: what goes down, the aggregator of what comes up, and what that made."""

    def __init__(self, method: Method, config: RunConfig, state: State, server_round: int) -> None:
        self._method, self._settings, self._state = method, config.aggregation, state
        self.down = method.down(state.now, server_round)
        self.task = method.task(server_round)
        generator = np.random.default_rng([config.seed, server_round, _SKETCH])
        has_error = method.measures_error and self._settings.robust != "median"  # a median is no mean
        self._sketch = ErrorSketch(self.down.adapter, generator) if has_error else None
        aggregator = method.aggregator(self.down, server_round)
        self._aggregator = self._robust(SketchedAggregator(aggregator, self._sketch) if self._sketch else aggregator)

    def add(self, adapter: Adapter, num_examples: int) -> None:
        """Take one device's sound adapter, and let it go."""
        weight = num_examples if self._settings.weights == "examples" else 1
        self._aggregator.add(adapter, weight)

    def result(self) -> State:
        """What the round made; its aggregator is used up. Raises RunError where nothing was added."""
        now, moments = self._aggregator.result(), self._state.moments
        if self._settings.optimizer != "none":
            adapter, moments = optimized(
                self.down.adapter, now.adapter, moments, self._settings, self.task.sends,
                keeps_components=self._method.keeps_components,
            )  # fmt: skip
            now = Global(adapter, now.frozen)
        return State(now, moments)

    def error(self, committed: Adapter) -> float | None:
        """The relative distance of `committed` from the weighted mean of the products; None where none can be known.

        With a robust rule the weights are those that it gave.
        """
        return self._sketch.relative_error(committed, self.down.frozen) if self._sketch else None

    def _robust(self, aggregator: Aggregator) -> Aggregator:
        if self._settings.robust == "none":
            return aggregator
        if self._settings.robust == "median":
            return MedianAggregator(self._method.lora)
        return WeighingAggregator(aggregator, self.down.adapter, self._settings)


def unused(method: str, settings: AggregationConfig) -> list[str]:
    """The keys that are set, and change nothing in a run of this method with these settings."""
    is_used = {
        "lr": settings.optimizer != "none",
        "beta1": settings.optimizer != "none",
        "beta2": settings.optimizer in ("fedadam", "fedyogi"),
        "tau": settings.optimizer in ("fedadam", "fedyogi"),
        "byzantine_share": settings.robust == "multi-krum",
        "norm_bound": settings.robust == "norm-bound",
        "max_rank": method in ("stack", "fedex"),
        "lorafair_lambda": method == "lorafair",
    }
    defaults = AggregationConfig()
    return [key for key, used in is_used.items() if not used and getattr(settings, key) != getattr(defaults, key)]


def norms(adapter: Adapter) -> dict[str, float]:
    """{module: ||gamma B A||_F}"""
    products = {module: adapter.product(module) for module in adapter.pairs}
    return {module: math.sqrt(max(0.0, inner_product(product, product))) for module, product in products.items()}
