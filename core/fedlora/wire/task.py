"""What a round asks of a device: which factors it trains, and which of them it sends back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from fedlora.errors import ConfigError

FactorSet = Literal["AB", "A", "B"]
MAX_AGAIN = (1 << 31) - 1
FACTOR_SETS: tuple[FactorSet, ...] = get_args(FactorSet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A factor that trains and is not sent stays on the device, which goes on from it the next time that it is asked."""

    trains: FactorSet = "AB"
    sends: FactorSet = "AB"
    again: int = 0  # times that the device was asked for this round before: each time it draws other batches

    def __post_init__(self) -> None:
        if type(self.again) is not int or not 0 <= self.again <= MAX_AGAIN:
            raise ConfigError(f"task: again must be an integer from 0 to {MAX_AGAIN}, got {self.again!r:.40}")
        for name in ("trains", "sends"):
            if getattr(self, name) not in FACTOR_SETS:
                raise ConfigError(f"task: {name} must be one of {', '.join(FACTOR_SETS)}, got {getattr(self, name)!r}")
        if not set(self.sends) <= set(self.trains):
            raise ConfigError(f"task: {self.sends} is sent, but only {self.trains} trains")

    @property
    def keeps(self) -> str:
        """The factors that stay on the device: "", "A" or "B"."""
        return "".join(factor for factor in self.trains if factor not in self.sends)

    def values(self) -> dict[str, object]:
        """What travels of it: a device of an earlier version, which knows no `again`, reads what never repeats."""
        values = asdict(self)
        if not self.again:
            del values["again"]
        return values
