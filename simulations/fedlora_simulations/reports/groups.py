"""Runs of one configuration with several seeds are one group: its means, and how far the seeds lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from fedlora.config.run import Scalar
from fedlora.errors import ConfigError

from fedlora_simulations.reports.run import RunResult
from fedlora_simulations.reports.student import Interval, paired

# Keys that may differ between runs of one group: the seed, and what changes no number.
_APART = (
    "seed", "name", "output", "base", "simulation.workers", "server.resume", "server.min_devices", "server.round_timeout_s",
)  # fmt: skip
_MOST_KEYS, _MOST_CHARACTERS = 3, 48  # of a name that is made of what differs
_DATA = ("data.", "simulation.devices")  # of the keys: those that say what is measured


MOST_GROUPS = 512  # on one page: each has a bar, a line and a row in every picture and table


def check_groups(count: int) -> None:
    """Raise ConfigError for more groups than a page has room for."""
    if count > MOST_GROUPS:
        raise ConfigError(f"{count} groups of runs on one page; at most {MOST_GROUPS} are shown: name fewer runs")


@dataclass(frozen=True, slots=True)
class Point:
    """A round's mean over the seeds; without a spread where there is one."""

    round: int
    mean: float
    deviation: float | None  # of a sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that differ in their seeds alone."""

    name: str
    runs: tuple[RunResult, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def config(self) -> Mapping[str, Scalar]:
        return self.runs[0].config

    @property
    def last_round(self) -> int:
        """The last that all of its runs have."""
        return min(run.last_round for run in self.runs)

    @property
    def is_traced(self) -> bool:
        """Whether there are rounds to be drawn: of a study there is the last alone."""
        return all(run.records for run in self.runs)

    def measured(self) -> list[str]:
        """The keys of the numbers of all its runs, in the order of the records."""
        found: dict[str, None] = {}
        for run in self.runs:
            for numbers in run.numbers.values():
                found |= dict.fromkeys(numbers)
        return list(found)

    def points(self, key: str) -> list[Point]:
        """By round, those that all seeds have."""
        values = [run.values(key) for run in self.runs]
        rounds = [number for number in values[0] if all(number in other for other in values)]
        return [Point(number, *_mean_and_deviation([value[number] for value in values])) for number in rounds]

    def finals(self, key: str) -> dict[int, float]:
        """{seed: number} after the last round that all of its runs have."""
        found = {run.seed: run.final(key, self.last_round) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def final(self, key: str) -> Point | None:
        """Mean and deviation of `finals`."""
        values = list(self.finals(key).values())
        return Point(self.last_round, *_mean_and_deviation(values)) if values else None

    def first(self, key: str) -> float | None:
        """That of the base, before the first round: the mean over the seeds."""
        values = [run.values(key)[0] for run in self.runs if 0 in run.values(key)]
        return fmean(values) if values else None

    def data(self) -> tuple[Any, ...]:
        """What its numbers are of: equal for groups that can be compared."""
        return (self.runs[0].base, *(value for key, value in self.config.items() if key.startswith(_DATA)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Groups that stand in one table: the runs that were named, or a setting of a study."""

    title: str = ""
    groups: tuple[Group, ...]
    pooled: Mapping[int, float] = field(default_factory=dict)  # {seed: loss} of one training on all data together
    rates: Mapping[str, Mapping[float, float]] = field(
        default_factory=dict
    )  # of a study: {row: {lr: loss}} that were tried
    notices: tuple[str, ...] = ()

    @property
    def loss_units(self) -> list[str]:
        return sorted({run.unit for group in self.groups for run in group.runs})

    @property
    def unit(self) -> str:
        """What the losses are counted by."""
        return " or ".join(self.loss_units)

    def differing(self) -> list[str]:
        """Keys of the configuration that are not the same in all groups, of those that can change a number."""
        keys = dict.fromkeys(key for group in self.groups for key in group.config)
        return [key for key in keys if key not in _APART and len({_of(group.config, key) for group in self.groups}) > 1]

    def difference(self, group: Group, against: Group, key: str) -> Interval | None:
        """`group` - `against` over the seeds of both; None where they are of other data, or share no seed."""
        ones, others = group.finals(key), against.finals(key)
        seeds = sorted(ones.keys() & others.keys())
        if group.data() != against.data() or not seeds:
            return None
        return paired([ones[seed] for seed in seeds], [others[seed] for seed in seeds])


def grouped(runs: Sequence[RunResult]) -> Panel:
    """The runs by what they share, in their order; of two with the same seed the one that went further counts."""
    by_config: dict[tuple[Any, ...], list[RunResult]] = {}
    for run in runs:
        by_config.setdefault(_identity(run), []).append(run)
    groups, notices = [], list[str]()
    for own in by_config.values():
        kept = _one_of_each_seed(own, notices)
        finished = [run for run in kept if run.is_finished]
        for run in kept if finished else ():
            if not run.is_finished:
                notices.append(f"{run.name} is {run.state}: it is left out of the means of its group")
        counted = finished or kept
        groups.append(Group(name=own[0].name, runs=tuple(sorted(counted, key=lambda run: run.seed))))
    notices += [notice for group in groups for run in group.runs for notice in run.notices()]
    panel = Panel(groups=tuple(groups))
    return replace(panel, groups=tuple(_named(panel)), notices=(*notices, *_incomparable(panel)))


def _one_of_each_seed(runs: Sequence[RunResult], notices: list[str]) -> list[RunResult]:
    kept: dict[int, RunResult] = {}
    for run in runs:
        other = kept.get(run.seed)
        if other is None or run.last_round > other.last_round:
            kept[run.seed] = run
        if other is not None:
            notices.append(
                f"{other.name} and {run.name} have the same configuration and seed: {kept[run.seed].name} counts, once"
            )
    return list(kept.values())


def _identity(run: RunResult) -> tuple[Any, ...]:
    base = run.base or run.config.get("base")
    return (base, run.unit, *sorted((key, value) for key, value in run.config.items() if key not in _APART))


def _named(panel: Panel) -> list[Group]:
    """The groups, each called by what it differs in; by its directory where that is much."""
    keys = _telling(panel)
    names = []
    for group in panel.groups:
        parts = [str(group.config["server.method"])] if not keys or "server.method" in keys else []
        parts += [f"{_short(key)} {_of(group.config, key)}" for key in keys if key != "server.method"]
        name = ", ".join(parts)
        names.append(name if len(keys) <= _MOST_KEYS and len(name) <= _MOST_CHARACTERS else group.runs[0].name)
    if len(set(names)) < len(names):  # bases of two fingerprints, or directories of one name
        names = [f"{name} ({group.runs[0].name})" for name, group in zip(names, panel.groups, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    return [replace(group, name=name) for group, name in zip(panel.groups, names, strict=True)]


def _telling(panel: Panel) -> list[str]:
    """As few of the differing keys as tell the groups apart, the method first: others often follow from them."""
    keys: list[str] = []
    parts: set[tuple[Scalar, ...]] = {()}
    for key in sorted(panel.differing(), key=lambda key: key != "server.method"):
        finer = {tuple(_of(group.config, each) for each in (*keys, key)) for group in panel.groups}
        if len(finer) > len(parts):
            keys, parts = [*keys, key], finer
    return keys


def _incomparable(panel: Panel) -> list[str]:
    """Why numbers of the groups are not of one thing."""
    told = []
    bases = {group.runs[0].base or str(group.config["base"]): str(group.config["base"]) for group in panel.groups}
    if len(bases) > 1:
        shown = ", ".join(f"{name.rpartition('/')[2]} ({fingerprint[:12]})" for fingerprint, name in bases.items())
        told.append(f"the runs have {len(bases)} bases, {shown}: their losses are of different models")
    elif len({group.data() for group in panel.groups}) > 1:
        told.append("the runs are of different data or devices: their losses are of different texts")
    if len(panel.loss_units) > 1:
        told.append("some losses are per token and some per text: they are not to be compared")
    return told


def _of(config: Mapping[str, Scalar], key: str) -> Scalar:
    value = config.get(key, "\N{EN DASH}")
    return "\N{EN DASH}" if value == "" else value


def _short(key: str) -> str:
    """`lr` for train.lr: what people say."""
    return key.rpartition(".")[2].replace("_", " ")


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None
