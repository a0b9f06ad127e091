"""Whether an update may be added: everything is checked before the first number is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from fedlora.errors import UpdateError
from fedlora.lora.adapter import Adapter
from fedlora.lora.ranks import first_components
from fedlora.wire.task import FactorSet
from fedlora.wire.update import Update
from numpy.typing import NDArray

MAX_EXAMPLES = 10**9
# Trained factors are below 10; with this bound no weighted sum of products comes near the end of float32.
MAX_MAGNITUDE = 1e3
_MOST = 1e6  # where a liar drove the adapter up round by round


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a sound reply of one round looks like."""

    run: str
    server_round: int
    base_fingerprint: str
    adapter: Adapter  # the one that went down to be trained: its configuration, modules and shapes come back
    factors: FactorSet = "AB"  # of it that come back
    limit: float = MAX_MAGNITUDE  # of the numbers
    min_rank: int = 0  # the least number of its components that a device may train; 0: all

    def check(self, update: Update) -> None:
        """Raise UpdateError, with a reason to count by, unless `update` is sound."""
        self._same("wrong-run", "run", update.run, self.run)
        self._same("wrong-round", "round", update.server_round, self.server_round)
        self._same("wrong-base", "base", update.base_fingerprint, self.base_fingerprint)
        if not 1 <= update.num_examples <= MAX_EXAMPLES:
            raise UpdateError("bad-weight", f"num_examples is {update.num_examples}; expected 1 to {MAX_EXAMPLES}")
        self._same("wrong-factors", "what came of A and B", update.factors, self.factors)
        self._same("wrong-factors", "an adapter beside the trained one", update.frozen is not None, False)
        self._same_names(update)
        expected = self._trained_part(update)
        for module, pair in expected.pairs.items():
            got = update.adapter.pairs[module]
            self._same("wrong-rank", f"rank of {module}", got.rank, pair.rank)
            self._same("wrong-shape", f"shape of {module}", got.shape, pair.shape)
            if not update.bound <= self.limit:  # NaN is not: look closely
                if "A" in self.factors:
                    self._sound(module, got.lora_A)
                if "B" in self.factors:
                    self._sound(module, got.lora_B)
        for name, array in self.adapter.extras.items():
            extra = update.adapter.extras[name]
            self._same("wrong-shape", f"shape of {name}", extra.shape, array.shape)
            if not update.bound <= self.limit:
                self._sound(name, extra)
        self._same("wrong-config", "LoRA configuration", update.adapter.config, expected.config)

    def _trained_part(self, update: Update) -> Adapter:
        """The components that a device of the rank that came was to train."""
        rank = max((pair.rank for pair in update.adapter.pairs.values()), default=0)
        if not self.min_rank or rank >= max((pair.rank for pair in self.adapter.pairs.values()), default=0):
            return self.adapter
        if rank < self.min_rank:
            raise UpdateError("wrong-rank", f"the rank is {rank}; this run takes {self.min_rank} and more")
        return first_components(self.adapter, rank)

    def _same_names(self, update: Update) -> None:
        for what, expected, got in (
            ("modules", self.adapter.pairs.keys(), update.adapter.pairs.keys()),
            ("tensors beside A and B", self.adapter.extras.keys(), update.adapter.extras.keys()),
        ):
            missing, extra = expected - got, got - expected
            if missing or extra:
                example = sorted(missing or extra)[0]
                raise UpdateError(
                    "wrong-modules",
                    f"of its {what} {len(missing)} are missing and {len(extra)} are unknown, {example} among them",
                )

    def _sound(self, module: str, array: NDArray[np.float32]) -> None:
        largest = max(float(array.max()), -float(array.min()))  # no temporary; NaN and infinity show in both
        if not math.isfinite(largest):
            raise UpdateError("not-finite", f"{module} holds NaN or infinity")
        if largest > self.limit:
            raise UpdateError("too-large", f"{module} holds {largest:.3g}; at most {self.limit:g} is taken")

    @staticmethod
    def _same(reason: str, what: str, got: object, expected: object) -> None:
        if got != expected:
            raise UpdateError(reason, f"{what} is {got}; expected {expected}")


def limit_for(down: Adapter) -> float:
    """What a reply may hold: where a liar of an earlier round had his way, the honest go on from there."""
    factors = (array for pair in down.pairs.values() for array in (pair.lora_A, pair.lora_B))
    largest = max(float(np.abs(array).max()) for array in (*factors, *down.extras.values()))
    return min(max(MAX_MAGNITUDE, 2 * largest), _MOST)
