"""What a method is: a rule by which the updates of a round become the next adapter.

A method is a value without state. What a run carries from round to round is a `Global`; an `Aggregator` takes the sound
updates of one round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedlora.config.run import AggregationConfig
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import joined
from fedlora.wire.task import Task

# Why a method that averages both factors takes no robust rule.
LED_ASTRAY = "another choice of factors for the same product would lead a mean of factors astray; use svd or ffa"


@dataclass(frozen=True, slots=True)
class Global:
    """What the rounds make better: the adapter that the devices train, and what stands frozen beside it."""

    adapter: Adapter
    frozen: Adapter | None = None


class Aggregator(ABC):
    """One round of one method.

    One that has `remove` promises that the order of `add` changes no bit, and is given the updates as they arrive; a mean
    that is made of `RingSum` keeps that promise. All others get them at the end of the round, in a fixed order.
    """

    @abstractmethod
    def add(self, adapter: Adapter, weight: float) -> None:
        """Take one device's adapter; nothing of it is kept but what the method must.

        Raises RunError unless `weight` is positive and finite.
        """

    def add_and_show(self, adapter: Adapter, weight: float, show: Callable[[str], None]) -> None:
        """`add`, and tell `show` of each module: one that goes through them does so while the cache has the module."""
        self.add(adapter, weight)
        for module in adapter.pairs:
            show(module)

    @property
    def waiting(self) -> int:
        """How many updates are held only to be added together with what comes next."""
        return 0

    def settle(self) -> None:  # noqa: B027 (most hold nothing)
        """Add what waits, and let it go."""

    def merge(self, other: Aggregator, factor: float) -> None:
        """Take all that `other`, of the same round, was given, with its weights times `factor`; `other` is used up."""
        raise NotImplementedError

    def remove(self, adapter: Adapter, weight: float) -> None:
        """Take back what was added with this weight, as if it had never been."""
        raise NotImplementedError

    @abstractmethod
    def result(self) -> Global:
        """What the round made. The aggregator is used up. Raises RunError where nothing was added."""


class Method:
    """A rule. One that does not override a default shares it; a reason is empty where the combination is possible."""

    uses: ClassVar[frozenset[str]] = frozenset()  # of the section `aggregation`: the keys that only some methods use
    refuses_mixed_ranks: ClassVar[str] = ""
    refuses_optimizer: ClassVar[str] = ""
    refuses_adaptive: ClassVar[str] = ""  # optimizers that go element by element
    refuses_robust: ClassVar[str] = ""
    takes_products: ClassVar[bool] = False  # it commits the best adapter for any mean of products
    keeps_components: ClassVar[bool] = (
        True  # component j of the result stands for what component j of the adapter before did
    )
    # Why it takes no updates on earlier adapters (server.mode = "async"); and of those, what it moves to the present one.
    refuses_async: ClassVar[str] = "it does not say what an update on an earlier adapter means to it; use svd"
    moves: ClassVar[Literal["factors", "products"]] = "factors"
    personal: ClassVar[bool] = False  # a device keeps a factor for itself, and needs a place for it
    measures_error: ClassVar[bool] = True  # the server knows the products that the devices ended with

    def __init__(self, lora: LoraConfig, settings: AggregationConfig, seed: int) -> None:
        """`lora` is what devices train. Raises ConfigError where the settings do not suit the method."""
        self.lora, self.settings, self.seed = lora, settings, seed

    def start(self, first: Adapter) -> Global:
        """What a run begins with, from a new adapter that changes nothing."""
        return Global(first)

    def committed(self, state: Global) -> Adapter:
        """All of it as one adapter: what is published, measured and served."""
        return state.adapter if state.frozen is None else joined(state.adapter, state.frozen)

    def restored(self, committed: Adapter, first: Adapter) -> Global:
        """What gave this committed adapter; `first` is the one that the run began with."""
        return Global(committed)

    def down(self, state: Global, server_round: int) -> Global:
        """What the devices of a round get."""
        return state

    def task(self, server_round: int) -> Task:
        """What they train of it, and send back."""
        return Task()

    def shared_from_seed(self) -> str:
        """The factors that every device makes itself from the run's seed, and which therefore do not go down."""
        return ""

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        """A new round, for what went down."""
        raise NotImplementedError
