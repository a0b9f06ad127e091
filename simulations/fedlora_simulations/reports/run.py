"""A run as its directory tells it, be it finished, stopped or still at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedlora.config.run import RunConfig, Scalar
from fedlora.counted import counted, gaps, ranges
from fedlora.errors import ConfigError
from fedlora.files.documents import read_object
from fedlora.files.lock_file import is_held
from fedlora.nearest import check_there
from fedlora_server.run.metrics_file import METRICS
from fedlora_server.run.run_directory import BEFORE, CONFIG, RUN, devices_to_measure, loss_unit, read_metrics
from fedlora_server.run.run_lock import LOCK

from fedlora_simulations.partition import Partition, read_partition
from fedlora_simulations.reports.baselines import read_alone
from fedlora_simulations.reports.environment import read_environment
from fedlora_simulations.reports.measures import Record, measure_of, numbers_of


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of one seed."""

    name: str  # its directory, or its place in a study
    config: Mapping[str, Scalar]
    unit: str = "token"  # that a loss is counted by
    base: str = ""  # the fingerprint of what was trained; empty where it is not known
    numbers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # {round: {key: number}}, in order
    records: tuple[Record, ...] = ()  # none in a study's
    is_running: bool = False
    partition: Partition | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)  # {device: held-out loss} where each trained by itself

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def rounds(self) -> int:
        """That it is to have."""
        return int(self.config["server.rounds"])

    @cached_property
    def last_round(self) -> int:
        """The last of which there is a line."""
        return max(self.numbers, default=0)

    @property
    def is_finished(self) -> bool:
        return self.last_round >= self.rounds

    @property
    def state(self) -> str:
        """`finished`, or how far it is."""
        if self.is_finished:
            return "finished"
        return f"{'still running' if self.is_running else 'stopped'} after round {self.last_round} of {self.rounds}"

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """The names of all that were heard."""
        parts = ("loss", "train_loss", "accuracy")
        return tuple(sorted({name for record in self.records for part in parts for name in record.get(part) or {}}))

    @cached_property
    def whole(self) -> int:
        """The number of devices whose losses make a mean over all."""
        return devices_to_measure(self.records)

    def notices(self) -> list[str]:
        """What a reader of its numbers has to know."""
        told = [] if self.is_finished else [f"{self.name}: {self.state}"]
        if missing := gaps(self.numbers):
            told.append(f"{self.name}: no line of round{'' if missing.isdecimal() else 's'} {missing} in {METRICS}")
        fewer = [record["round"] for record in self.records if 0 < len(record["loss"]) < self.whole]
        if fewer:
            told.append(
                f"{self.name}: fewer than {counted(self.whole, 'device')} were measured after round {ranges(fewer)}"
            )
        return told

    def values(self, key: str) -> dict[int, float]:
        """{round: number} of a key."""
        return {number: values[key] for number, values in self.numbers.items() if key in values}

    def final(self, key: str, last: int | None = None) -> float | None:
        """One number for the run, up to the round `last`: as the key is counted over rounds."""
        values = [value for number, value in self.values(key).items() if last is None or number <= last]
        if not values:
            return None
        over = measure_of(key).over
        return values[-1] if over == "last" else sum(values) / (1 if over == "sum" else len(values))


def read_run(path: Path | str) -> RunResult:
    """The run in a directory.

    Raises ConfigError where there is none, or none of its rounds is measured; RunError where a file was changed.
    """
    path = Path(path)
    check_there(path)
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path} holds no run: it has no {CONFIG}; name the directory of a run")
    config = _config(path)
    try:
        lines = read_metrics(path)
    except FileNotFoundError:
        lines = []
    by_round = {line["round"]: line for line in lines if line["round"] >= 0}
    records = tuple(by_round[number] for number in sorted(by_round))
    if not records:
        raise ConfigError(f"{path}: no round has a line in {METRICS} yet; wait for the first, or name another run")
    devices = {name for record in records for name in record["loss"]}
    return RunResult(
        name=path.resolve().name or str(path),
        config=config,
        unit=loss_unit(path),
        base=_fingerprint(path),
        numbers={record["round"]: numbers_of(record, devices) for record in records},
        records=records,
        is_running=is_held(path / LOCK),
        partition=read_partition(path),
        environment=read_environment(path),
        alone=read_alone(path),
    )


def _config(path: Path) -> dict[str, Scalar]:
    """The configuration, every key: those that came after the run as they were then, those of a later version too."""
    raw = read_object(path / CONFIG, ConfigError, "the configuration of a run")
    default = RunConfig().flat()
    known = {key: value for key, value in raw.items() if key in default}
    config = RunConfig.from_flat(BEFORE | known, str(path / CONFIG)).flat()
    later = {
        key: value for key, value in raw.items() if key not in default and isinstance(value, bool | int | float | str)
    }
    return config | later


def _fingerprint(path: Path) -> str:
    try:
        found = read_object(path / RUN, ConfigError, "a run's number and base").get("base_fingerprint")
    except ConfigError:
        return ""
    return found if isinstance(found, str) else ""
