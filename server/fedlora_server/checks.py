"""Whether an update may be added: everything is checked before the first number is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from fedlora.adapter import Adapter
from fedlora.errors import UpdateError
from fedlora.update import Update
from numpy.typing import NDArray

MAX_EXAMPLES = 10**9
# Trained factors are below 10; with this bound no weighted sum of products leaves float32.
MAX_MAGNITUDE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a sound reply of one round looks like."""

    run: str
    server_round: int
    base_fingerprint: str
    adapter: Adapter  # the one that went down: its configuration, modules and shapes come back

    def check(self, update: Update) -> None:
        """Raise UpdateError, with a reason to count by, unless `update` is sound."""
        self._same("wrong-run", "run", update.run, self.run)
        self._same("wrong-round", "round", update.server_round, self.server_round)
        self._same("wrong-base", "base", update.base_fingerprint, self.base_fingerprint)
        if not 1 <= update.num_examples <= MAX_EXAMPLES:
            raise UpdateError("bad-weight", f"num_examples is {update.num_examples}; expected 1 to {MAX_EXAMPLES}")
        self._same_names(update)
        for module, expected in self.adapter.pairs.items():
            got = update.adapter.pairs[module]
            self._same("wrong-rank", f"rank of {module}", got.rank, expected.rank)
            self._same("wrong-shape", f"shape of {module}", got.shape, expected.shape)
            self._sound(module, got.lora_A)
            self._sound(module, got.lora_B)
        self._same("wrong-config", "LoRA configuration", update.adapter.config, self.adapter.config)

    def _same_names(self, update: Update) -> None:
        missing = self.adapter.pairs.keys() - update.adapter.pairs.keys()
        extra = update.adapter.pairs.keys() - self.adapter.pairs.keys()
        if missing or extra:
            example = sorted(missing or extra)[0]
            raise UpdateError(
                "wrong-modules",
                f"{len(missing)} modules are missing and {len(extra)} are unknown, {example} among them",
            )

    @staticmethod
    def _sound(module: str, array: NDArray[np.float32]) -> None:
        largest = max(float(array.max()), -float(array.min()))  # no temporary; NaN and infinity show in both
        if not math.isfinite(largest):
            raise UpdateError("not-finite", f"{module} holds NaN or infinity")
        if largest > MAX_MAGNITUDE:
            raise UpdateError("too-large", f"{module} holds {largest:.3g}; at most {MAX_MAGNITUDE:g} is taken")

    @staticmethod
    def _same(reason: str, what: str, got: object, expected: object) -> None:
        if got != expected:
            raise UpdateError(reason, f"{what} is {got}; expected {expected}")
