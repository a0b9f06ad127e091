"""How one data set is dealt out to the devices of a simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from fedlora.config.require import require
from fedlora.errors import ConfigError

Rule = Literal["natural", "iid", "dirichlet", "shards", "quantity", "topics"]
RULES: tuple[Rule, ...] = get_args(Rule)
_USED_BY: dict[str, tuple[Rule, ...]] = {  # a key, and the rules that it means something to
    "alpha": ("dirichlet", "quantity", "topics"),
    "least": ("natural", "dirichlet", "quantity", "topics"),
    "shards": ("shards",),
    "topics": ("topics",),
    "held_out": RULES,
}
_NEVER = 2  # of the seed, for another stream than the dealing's


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionConfig:
    """With a `rule`, `data.path` is one data set, whose records are dealt out; without, each device has its own files.

    docs/simulations.md says what each rule does.
    """

    rule: str = ""
    alpha: float = 0.5  # of the Dirichlet distribution: the smaller, the less alike the devices
    least: int = 10  # examples that every device gets; natural: that an owner has, or it takes no part
    shards: int = 2  # that a device gets: about so many labels
    topics: int = 10  # that the texts are sorted into
    seed: int = 0  # of the dealing alone: runs with other seeds have the same devices
    # Devices that never train and are measured all the same: below 1 a share of them, from 1 on their number.
    held_out: float = 0.0

    def __post_init__(self) -> None:
        known = ("", *RULES)
        require(self.rule in known, f"data.partition.rule must be one of {', '.join(RULES)}, or empty", self.rule)
        require(0 < self.alpha < math.inf, "data.partition.alpha must be above 0 and finite", self.alpha)
        require(self.least >= 1, "data.partition.least must be at least 1", self.least)
        require(self.shards >= 1, "data.partition.shards must be at least 1", self.shards)
        require(2 <= self.topics <= 1000, "data.partition.topics must be from 2 to 1000", self.topics)
        require(0 <= self.seed < 1 << 32, "data.partition.seed must be from 0 to 2^32 - 1", self.seed)
        require(
            0 <= self.held_out < math.inf and (self.held_out < 1 or self.held_out == int(self.held_out)),
            "data.partition.held_out must be a share of the devices below 1, or a whole number of them",
            self.held_out,
        )
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        for key, rules in _USED_BY.items():
            if self.rule not in rules and key in given:
                owners = ", ".join(rules)
                raise ConfigError(
                    f"data.partition.{key} means nothing to the rule {self.rule or '(none)'}; it belongs to {owners}: "
                    "change data.partition.rule, or take the key out"
                )

    def never_training(self, devices: int) -> frozenset[int]:
        """Which of so many devices never train, counted from 0: the same for the same seed.

        Raises ConfigError where none would be left to train.
        """
        count = math.ceil(round(self.held_out * devices, 6)) if self.held_out < 1 else int(self.held_out)
        if not count:
            return frozenset()
        if count >= devices:
            raise ConfigError(
                f"data.partition.held_out is {self.held_out:g}, of simulation.devices = {devices} none would train; lower "
                "one, or raise the other"
            )
        chosen = np.random.default_rng([self.seed, _NEVER]).choice(devices, count, replace=False)
        return frozenset(chosen.tolist())
