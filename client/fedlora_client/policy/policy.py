"""What a device lets a server ask of it. Each refusal has a word by which the server counts it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from fnmatch import fnmatchcase

from fedlora.config.run import RunConfig
from fedlora.counted import counted
from fedlora.errors import ConfigError, PolicyError

from fedlora_client.policy.machine import Machine
from fedlora_client.policy.quiet_hours import QuietHours

_LARGEST = 1 << 53  # of a number: a larger one bounds nothing
_DIGITS = 16  # of a fingerprint, at least
_NUMBERS = ("max_rank", "max_steps", "max_memory_mb", "min_examples", "rounds_a_day", "bytes_a_day")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is 0, empty or false bounds nothing."""

    runs: tuple[str, ...] = ()  # names of runs, as the server gives them; * stands for anything
    bases: tuple[str, ...] = ()  # fingerprints, or their first 16 digits and more
    methods: tuple[str, ...] = ()
    max_rank: int = 0
    max_steps: int = 0  # of a round
    max_seconds: float = 0.0  # of a round's training, and of a measurement
    max_memory_mb: int = 0  # of the whole process
    min_examples: int = 0  # in all and in a round's batches: fewer of them would show in what is sent
    quiet_hours: tuple[str, ...] = ()  # HH:MM-HH:MM, by the device's clock
    min_battery: int = 0  # percent
    mains_only: bool = False
    idle_only: bool = False  # as a question comes: not while the device itself works on it
    rounds_a_day: int = 0  # that it trains in; and of measurements, one more
    bytes_a_day: int = 0  # of adapters, down and up

    def __post_init__(self) -> None:
        for name in (*_NUMBERS, "min_battery", "max_seconds"):
            value = getattr(self, name)
            if not 0 <= value < _LARGEST:
                raise ConfigError(f"policy.{name}: {value!r:.40}; expected 0 (no bound) or more, less than 2^53")
        if self.min_battery > 100:
            raise ConfigError(f"policy.min_battery: {self.min_battery}; expected a percentage, at most 100")
        for base in self.bases:
            if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS},64}}", base):
                raise ConfigError(
                    f"policy.bases: {base!r:.80}; expected {_DIGITS} to 64 digits of a fingerprint, which fedlora inspect "
                    "prints"
                )
        self.hours()

    def hours(self) -> list[QuietHours]:
        return [QuietHours.read(text, "policy.quiet_hours") for text in self.quiet_hours]

    def check_run(self, config: RunConfig) -> None:
        """Raise PolicyError where the device takes no part in such a run."""
        if self.runs and not any(fnmatchcase(config.name, pattern) for pattern in self.runs):
            raise PolicyError(
                "policy-run", f"the run is called {config.name}; only {', '.join(self.runs)} may be, by policy.runs"
            )
        method = config.server.method
        if self.methods and method not in self.methods:
            raise PolicyError(
                "policy-method", f"the run's method is {method}; policy.methods takes {', '.join(self.methods)}"
            )
        if self.max_steps and config.train.steps > self.max_steps:
            raise PolicyError(
                "policy-steps",
                f"a round has {counted(config.train.steps, 'step')}; policy.max_steps takes {self.max_steps}",
            )
        least = self.least_rank(config)
        if self.max_rank and least > self.max_rank:
            raise PolicyError(
                "policy-rank", f"the run takes ranks of {least} and more; policy.max_rank takes {self.max_rank}"
            )

    @staticmethod
    def least_rank(config: RunConfig) -> int:
        """The smallest rank of which the run lets a device train its largest module."""
        ranks = [int(entry.rpartition("=")[2]) for entry in config.lora.rank_pattern]
        largest = max(config.lora.rank, *ranks, 1)
        return min(config.aggregation.min_rank, largest) or largest

    def check_base(self, fingerprint: str) -> None:
        """Raise PolicyError where the device does not train on this base."""
        if self.bases and not any(fingerprint.startswith(base) for base in self.bases):
            named = ", ".join(base[:_DIGITS] for base in self.bases)
            raise PolicyError("policy-base", f"the run's base is {fingerprint[:_DIGITS]}; policy.bases takes {named}")

    def check_examples(self, examples: int, what: str = "to train on") -> None:
        if examples < self.min_examples:
            raise PolicyError(
                "policy-examples",
                f"{counted(examples, 'example')} {what}; policy.min_examples wants {self.min_examples}",
            )

    def check_power(self, now: datetime, machine: Machine) -> None:
        """Raise PolicyError where the device does not work at this time or on this power: also in the middle of work."""
        for hours in self.hours():
            if hours.hold(now.time()):
                raise PolicyError("policy-hours", f"it is {now:%H:%M}; policy.quiet_hours: {hours} must be quiet")
        level = machine.battery_percent() if self.min_battery else None
        if level is not None and level < self.min_battery:
            raise PolicyError(
                "policy-battery", f"the battery is at {level:.0f}%; policy.min_battery wants {self.min_battery}%"
            )
        if self.mains_only and not machine.on_mains():
            raise PolicyError("policy-mains", "on battery; policy.mains_only lets it work on mains only")

    def check_idle(self, machine: Machine) -> None:
        if self.idle_only and not machine.is_idle():
            raise PolicyError("policy-idle", "it has other work; policy.idle_only lets it work when idle only")

    def words(self) -> Iterator[str]:
        """What the policy says, a line for each bound."""
        texts = {
            "runs": f"takes part in runs called {', '.join(self.runs)} only",
            "bases": f"trains on the bases {', '.join(base[:_DIGITS] for base in self.bases)} only",
            "methods": f"takes the methods {', '.join(self.methods)} only",
            "max_rank": f"trains ranks up to {self.max_rank}",
            "max_steps": f"trains up to {counted(self.max_steps, 'step')} a round",
            "max_seconds": f"trains up to {self.max_seconds:g} s a round, and measures as long",
            "max_memory_mb": f"takes up to {self.max_memory_mb} MB of memory",
            "min_examples": f"takes part with {counted(self.min_examples, 'example')} or more in a round's batches",
            "quiet_hours": f"is quiet at {', '.join(self.quiet_hours)}, by its own clock",
            "min_battery": f"works with a battery of {self.min_battery}% and more",
            "mains_only": "works on mains power only",
            "idle_only": "begins while the machine is idle only",
            "rounds_a_day": f"trains in up to {counted(self.rounds_a_day, 'round')} a day, and measures once more",
            "bytes_a_day": f"receives and sends up to {self.bytes_a_day / 1e6:g} MB of adapters a day",
        }
        bounds = [texts[part.name] for part in fields(self) if getattr(self, part.name)]
        yield from bounds or ["takes part in whatever it is asked"]
