"""A run's aggregation: its method, with what the configuration combines it with. What does not go together is refused."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, fields, replace

import numpy as np
from fedlora.config.run import AggregationConfig, RunConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, Extras, with_extras
from fedlora.lora.algebra import inner_product
from fedlora.lora.kinds import BY_NAME, Kind
from fedlora.wire.task import FactorSet

from fedlora_server.aggregation.capped_weights import CappedAggregator, in_any_order, merges
from fedlora_server.aggregation.error_sketch import ErrorSketch, SketchedAggregator
from fedlora_server.aggregation.extra_tensors import ExtraAggregator, moved_extras
from fedlora_server.aggregation.optimizers import ADAPTIVE, USES, Moments, optimized
from fedlora_server.aggregation.robust_aggregator import WeighingAggregator, all_alike
from fedlora_server.aggregation.robust_rule import AUTO, BY_DEFAULT, NONE, RobustRule, find_robust_rule
from fedlora_server.aggregation.signs import with_signs
from fedlora_server.methods import find_method
from fedlora_server.methods.method import Aggregator, Global, Method
from fedlora_server.methods.moved import moved_both, moved_factors, moved_products

log = logging.getLogger("fedlora.server")

# Keys that every run uses.
_COMMON = frozenset({"fixed_signs", "weights", "max_weight", "min_rank", "optimizer", "robust"})
_SKETCH = 2  # which of a round's random numbers: 0 and 1 are the first adapter's and the sampling's


@dataclass(frozen=True, slots=True)
class State:
    """What a run carries from round to round."""

    now: Global  # A and B: what the method sees
    moments: Moments = field(default_factory=dict)  # of the server's optimizer
    extras: Extras = field(default_factory=dict)


class Aggregation:
    """The rule of a run."""

    def __init__(self, config: RunConfig, first: Adapter) -> None:
        """`first` is the adapter that the run begins with. Raises ConfigError for what does not go together."""
        config = with_rule(config)
        name, settings, kind = config.server.method, config.aggregation, BY_NAME[first.config.method]
        if why := kind.refuses_method(name):
            raise ConfigError(
                f"server.method is {name}, which does not fit lora.method = {kind.name}: {why}; set another"
            )
        self.method = find_method(name)(first.config, settings, config.seed)
        self._extras, first = first.extras, with_extras(first, {})
        rule = find_robust_rule(settings.robust)
        self._rule = rule(first.config, settings) if rule else None
        self._config, self._settings, self._first = config, settings, first
        for key, wanted, refusal in (
            ("min_rank", settings.min_rank, self.method.refuses_mixed_ranks),
            ("optimizer", settings.optimizer != "none", self.method.refuses_optimizer),
            ("optimizer", settings.optimizer in ADAPTIVE, self.method.refuses_adaptive),
            ("robust", self._rule is not None, _refuses_robust(self.method, kind)),
        ):
            if wanted and refusal:
                raise ConfigError(
                    f"aggregation.{key} is {getattr(settings, key)}, which {name} does not take: {refusal}; leave it out"
                )
        if config.server.mode == "async" and self.method.refuses_async:
            raise ConfigError(
                f"server.mode is async, which {name} does not take: {self.method.refuses_async}; or set it to sync"
            )
        if settings.min_rank > config.lora.rank:
            raise ConfigError(
                f"aggregation.min_rank is {settings.min_rank}; expected at most lora.rank, {config.lora.rank}"
            )
        uncapped = settings.weights != "uniform" and not (self._rule and self._rule.takes_examples)
        if self._rule and (settings.min_rank or uncapped):
            key, value = ("min_rank", 0) if settings.min_rank else ("weights", "uniform")
            raise ConfigError(
                f"aggregation.robust is {settings.robust}, aggregation.{key} {getattr(settings, key)}: a robust rule "
                f"compares whole updates of devices that count alike; set aggregation.{key} to {value}"
            )
        if self._rule and self._rule.replaces_mean and not self.method.takes_products:
            raise ConfigError(
                f"aggregation.robust is {settings.robust}, which takes the place of a mean of products: {name} has none; "
                "use svd"
            )
        for key in unused(settings, self.method.uses | (self._rule.uses if self._rule else frozenset())):
            log.warning("aggregation.%s is %s, and nothing in this run uses it", key, getattr(settings, key))

    @property
    def rule(self) -> str:
        """The robust rule by its name; none where there is none."""
        return self._settings.robust

    @property
    def factors_down(self) -> FactorSet:
        """What of the adapter goes down: all but what every device makes from the seed."""
        down: dict[str, FactorSet] = {"": "AB", "A": "B", "B": "A"}
        return down[self.method.shared_from_seed()]

    def start(self) -> State:
        return State(self.method.start(self._first), extras=self._extras)

    def restored(self, committed: Adapter, moments: Moments) -> State:
        """The state whose round committed this adapter."""
        now = self.method.restored(with_extras(committed, {}), self._first)
        return State(now, moments, committed.extras)

    def committed(self, state: State) -> Adapter:
        """All of the state as one adapter: what is published, measured and served."""
        return with_extras(self.method.committed(state.now), state.extras)

    def down(self, state: State, server_round: int) -> Global:
        """What the devices of a round get."""
        return _down(self.method, state, server_round)

    def round(self, state: State, server_round: int) -> Round:
        """A new round from `state`."""
        return Round(self.method, self._rule, self._config, state, server_round)


class Round:
    """One round: what goes down, the aggregator of what comes up, and what that made.

    The order of `add` changes no bit of it.
    """

    def __init__(
        self, method: Method, rule: RobustRule | None, config: RunConfig, state: State, server_round: int
    ) -> None:
        self._method, self._settings, self._state = method, config.aggregation, state
        self.down = _down(method, state, server_round)
        self.task = method.task(server_round)
        generator = np.random.default_rng([config.seed, server_round, _SKETCH])
        has_error = method.measures_error and not (rule and rule.replaces_mean) and bool(self.down.adapter.pairs)
        self._sketch = ErrorSketch(self.down.adapter, generator) if has_error else None  # extra tensors' mean has none
        self._server_round, self._groups = server_round, 0
        self._aggregator = self._around(rule)

    def _around(self, rule: RobustRule | None) -> Aggregator:
        """The method's aggregator with the rule, or with what bounds the weights that devices give themselves."""
        down, most = self.down.adapter, self._settings.max_weight
        if rule:
            ruled = rule.aggregator(self._new(), down)
            return ruled if in_any_order(ruled) else WeighingAggregator(ruled, down, all_alike, 0)
        most = 0.0 if self._settings.weights == "uniform" else most
        plain = self._method.aggregator(self._down_to_method, self._server_round)
        if in_any_order(plain) and not most:
            return self._new()
        if in_any_order(plain) and merges(plain):
            return CappedAggregator(self._new, most)
        return WeighingAggregator(self._new(), down, all_alike, most)

    def _new(self) -> Aggregator:
        """The method's aggregator with a sketch: the first one has the round's, to which those of others are added."""
        aggregator = self._method.aggregator(self._down_to_method, self._server_round)
        if self._sketch:
            self._groups += 1
            aggregator = SketchedAggregator(aggregator, self._sketch if self._groups == 1 else self._sketch.twin())
        extras = self.down.adapter.extras
        return ExtraAggregator(aggregator, extras) if extras else aggregator

    @property
    def _down_to_method(self) -> Global:
        return Global(with_extras(self.down.adapter, {}), self.down.frozen)

    @property
    def left_out(self) -> list[int]:
        """Those of the added updates, counted from 0, that the robust rule gave no weight in the result."""
        return list(getattr(self._aggregator, "left_out", ()))

    def add(self, adapter: Adapter, num_examples: int) -> None:
        """Take one device's sound adapter, and let it go."""
        self._aggregator.add(adapter, self._weight(num_examples))

    def remove(self, adapter: Adapter, num_examples: int) -> None:
        """Take back what was added: what the round makes has the bits that it would have without."""
        self._aggregator.remove(adapter, self._weight(num_examples))

    def _weight(self, num_examples: int) -> float:
        return num_examples if self._settings.weights == "examples" else 1

    def add_late(self, adapter: Adapter, num_examples: int, then: Adapter, factor: float) -> None:
        """Take an update on `then`, which went down in an earlier round: what it changed counts `factor` times."""
        now = self.down.adapter
        if self._method.moves == "products":
            moved = moved_products(adapter, then, now, factor)
        elif self.task.sends == "AB":
            moved = moved_both(adapter, then, now, factor)
        else:  # with one factor the same for all, factors and products are as one
            moved = moved_factors(adapter, then, now, factor)
        self.add(with_extras(moved, moved_extras(adapter.extras, then.extras, now.extras, factor)), num_examples)

    def result(self) -> State:
        """What the round made; its aggregator is used up. Raises RunError where nothing was added."""
        now, moments = self._aggregator.result(), self._state.moments
        if self._settings.optimizer != "none":
            adapter, moments = optimized(
                self.down.adapter, now.adapter, moments, self._settings, self.task.sends,
                keeps_components=self._method.keeps_components,
            )  # fmt: skip
            now = Global(adapter, now.frozen)
        extras = now.adapter.extras
        now = Global(with_extras(now.adapter, {}), now.frozen)
        if self._settings.fixed_signs:
            adapter = now.adapter if self._method.keeps_components else with_signs(now.adapter)
            now = Global(adapter, now.frozen and with_signs(now.frozen))
        return State(now, moments, extras)

    def error(self, committed: Adapter) -> float | None:
        """The relative distance of `committed` from the weighted mean of the products; None where none can be known.

        With a robust rule the weights are those that it gave.
        """
        return self._sketch.relative_error(committed, self.down.frozen) if self._sketch else None


def _down(method: Method, state: State, server_round: int) -> Global:
    down = method.down(state.now, server_round)
    return Global(with_extras(down.adapter, state.extras), down.frozen)


def with_rule(config: RunConfig) -> RunConfig:
    """`config` with the rule that `auto` stands for by its name: a run's configuration tells what the run does."""
    settings = config.aggregation
    if settings.robust != AUTO:
        return config
    method = find_method(config.server.method)
    takes_one = not _refuses_robust(method, BY_NAME[config.lora.method]) and not settings.min_rank
    return replace(config, aggregation=replace(settings, robust=BY_DEFAULT if takes_one else NONE))


def _refuses_robust(method: Method | type[Method], kind: Kind) -> str:
    """Why no robust rule goes with the method; what it says of factors is nothing to a kind without them."""
    return "" if not kind.has_factors and kind.mean_is_exact else method.refuses_robust


def unused(settings: AggregationConfig, uses: frozenset[str]) -> list[str]:
    """The keys that are set, and change nothing in a run whose method and robust rule use these."""
    used = _COMMON | USES[settings.optimizer] | uses
    defaults = AggregationConfig()
    keys = [part.name for part in fields(settings) if part.name not in used]
    return [key for key in keys if getattr(settings, key) != getattr(defaults, key)]


def norms(adapter: Adapter) -> dict[str, float]:
    """{module: ||gamma B A||_F}"""
    products = {module: adapter.product(module) for module in adapter.pairs}
    return {module: math.sqrt(max(0.0, inner_product(product, product))) for module, product in products.items()}
