"""What a round asks of a device: which factors it trains, and which of them it sends back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedlora.errors import ConfigError

FactorSet = Literal["AB", "A", "B"]
FACTOR_SETS: tuple[FactorSet, ...] = get_args(FactorSet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A factor that trains and is not sent stays on the device, which goes on from it the next time that it is asked."""

    trains: FactorSet = "AB"
    sends: FactorSet = "AB"

    def __post_init__(self) -> None:
        for name in ("trains", "sends"):
            if getattr(self, name) not in FACTOR_SETS:
                raise ConfigError(f"task: {name} must be one of {', '.join(FACTOR_SETS)}, got {getattr(self, name)!r}")
        if not set(self.sends) <= set(self.trains):
            raise ConfigError(f"task: {self.sends} is sent, but only {self.trains} trains")

    @property
    def keeps(self) -> str:
        """The factors that stay on the device: "", "A" or "B"."""
        return "".join(factor for factor in self.trains if factor not in self.sends)
