"""What a method is: a fold over the sound adapters of one round."""

from __future__ import annotations

from typing import Protocol

from fedlora.adapter import Adapter

from fedlora_server.exact_mean import ExactMean


class Fold(Protocol):
    """One round of one method, made from the run's LoraConfig.

    Every adapter has that configuration: it was checked before. The order of `add` changes nothing but rounding.
    """

    def add(self, adapter: Adapter, weight: float) -> None:
        """Take one device's adapter; nothing of it is kept but what the method must."""

    def result(self, exact: ExactMean) -> Adapter:
        """The round's adapter; `exact` has seen the same adapters. Raises RunError where there were none."""
