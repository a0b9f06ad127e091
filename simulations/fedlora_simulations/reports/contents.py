"""What a report has: its panels, each with its pictures and tables, made once for page and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedlora.counted import counted
from fedlora.errors import ConfigError, printable
from fedlora.nearest import hint

from fedlora_simulations.reports import figures
from fedlora_simulations.reports.charts import Chart
from fedlora_simulations.reports.configuration import configuration_table, differing_table, environment_table
from fedlora_simulations.reports.groups import Group, Panel
from fedlora_simulations.reports.measures import Measure, measure_of
from fedlora_simulations.reports.results import (
    devices_table,
    differences,
    differences_table,
    examples_table,
    extra_table,
    rates_table,
    results_table,
)
from fedlora_simulations.reports.run import RunResult
from fedlora_simulations.reports.run_tables import all_devices_table, costs_table, rounds_table
from fedlora_simulations.reports.student import Interval
from fedlora_simulations.reports.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One number that a reader sees first."""

    name: str
    text: str
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a report says of one panel."""

    panel: Panel
    facts: tuple[Fact, ...]
    large: tuple[Chart, ...]  # curves that have the page's width
    small: tuple[Chart, ...]
    compared: tuple[Chart, ...]  # the ends of the groups, and their differences
    partitions: tuple[Chart, ...]
    results: Table
    tables: tuple[Table, ...]  # below the pictures
    long: tuple[Table, ...] = ()  # of one run: closed where they are long
    settings: tuple[Table, ...] = ()

    @property
    def charts(self) -> tuple[Chart, ...]:
        return (*self.large, *self.small, *self.compared, *self.partitions)

    @property
    def all_tables(self) -> tuple[Table, ...]:
        return (self.results, *self.tables, *self.long, *self.settings)

    @property
    def run(self) -> RunResult | None:
        """The only run, where there is but one."""
        runs = [run for group in self.panel.groups for run in group.runs]
        return runs[0] if len(runs) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    notices: tuple[str, ...] = field(default=())


def report_of(
    panels: Sequence[Panel], *, title: str = "", against: str = "", full: Mapping[str, float] | None = None
) -> Report:
    """`against` names the group that the others are compared with, the first unless told. Raises ConfigError."""
    if against and all(group.name != against for panel in panels for group in panel.groups):
        names = list(dict.fromkeys(group.name for panel in panels for group in panel.groups))
        near = hint(against, names, f"expected one of {', '.join(names)}")
        raise ConfigError(f"--against {against}: there is no such group; {near}")
    sections = tuple(_section(panel, against, full) for panel in panels)
    notices = tuple(dict.fromkeys(printable(notice) for panel in panels for notice in panel.notices))
    return Report(
        title=title or _title(panels), subtitle=_subtitle(panels[0]) if len(panels) == 1 else "", sections=sections,
        notices=notices,
    )  # fmt: skip


def _section(panel: Panel, against: str, full: Mapping[str, float] | None) -> Section:
    reference = next((group for group in panel.groups if group.name == against), panel.groups[0])
    large, small = figures.curves(panel)
    devices = figures.sorted_devices(panel)
    found = differences(panel, reference)
    leading = figures.leading(panel)
    compared = [figures.ends(panel, key) for key in leading]
    compared += [figures.distances(panel, reference, key, found[key]) for key in leading if key in found]
    tables = [
        differences_table(panel, reference, found) if found else None, devices_table(panel), examples_table(panel),
        rates_table(panel), extra_table(panel),
    ]  # fmt: skip
    section = Section(
        panel=panel, facts=tuple(_facts(panel, leading, reference, found)), large=tuple(large),
        small=(*([devices] if devices else []), *small), compared=tuple(chart for chart in compared if chart),
        partitions=tuple(figures.partitions(run for group in panel.groups for run in group.runs)),
        results=results_table(panel, full), tables=tuple(each for each in tables if each),
        settings=tuple(
            each for each in (differing_table(panel), environment_table(panel), configuration_table(panel)) if each
        ),
    )  # fmt: skip
    if (run := section.run) is None or not run.records:
        return section
    long = (rounds_table(run), all_devices_table(run), costs_table(run))
    return replace(section, long=tuple(each for each in long if each))


def _facts(
    panel: Panel, leading: Sequence[str], reference: Group, found: Mapping[str, Mapping[str, Interval]]
) -> list[Fact]:
    """What the best group reached, and what it took."""
    facts = []
    for key in leading:
        measure = measure_of(key)
        ends = [(group, end) for group in panel.groups if (end := group.final(key)) is not None]
        if not ends:
            continue
        group, end = (min if measure.less_is_better else max)(ends, key=lambda each: each[1].mean)
        first = group.first(key)
        more = [f"base {measure.text(first)}"] if first is not None else []
        more += [f"best of {len(ends)}: {printable(group.name)}"] if len(ends) > 1 else []
        facts.append(Fact(name=measure.title, text=_short(measure, end.mean), more=", ".join(more)))
        if (one := found.get(key, {}).get(group.name)) is not None and one.low is not None and one.high is not None:
            reach = f"95%: {measure.difference(one.low)} to {measure.difference(one.high)}"
            facts.append(
                Fact(name=f"{group.name} beside {reference.name}", text=measure.difference(one.mean), more=reach)
            )
    if len(panel.groups) == 1:
        facts += _costs(panel.groups[0])
    return facts


def _costs(group: Group) -> list[Fact]:
    facts = []
    down, up = group.final("mb_down"), group.final("mb_up")
    if down and up:
        facts.append(
            Fact(name="bytes", text=f"{down.mean + up.mean:.1f} MB", more=f"down {down.mean:.1f}, up {up.mean:.1f}")
        )
    if seconds := group.final("seconds"):
        facts.append(Fact(name="time", text=_time(seconds.mean), more=counted(group.last_round, "round")))
    return facts


def _short(measure: Measure, value: float) -> str:
    return f"{value:.1%}" if measure.is_share else f"{value:.3f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _title(panels: Sequence[Panel]) -> str:
    names = list(dict.fromkeys(str(group.config["name"]) for panel in panels for group in panel.groups))
    return printable(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))


def _subtitle(panel: Panel) -> str:
    if len(panel.groups) > 1:
        runs = sum(len(group.runs) for group in panel.groups)
        return f"{counted(len(panel.groups), 'configuration')}, {counted(runs, 'run')}"
    group, config = panel.groups[0], panel.groups[0].config
    seeds = f"seed{'s' * (len(group.seeds) > 1)} {', '.join(map(str, group.seeds))}"
    base = str(config["base"]).rstrip("/").rpartition("/")[2]
    devices, rounds, steps = (
        counted(int(config[key]), noun)
        for key, noun in (("simulation.devices", "device"), ("server.rounds", "round"), ("train.steps", "step"))
    )
    return printable(
        f"base {base}, method {config['server.method']}, {devices}, {rounds} of {steps}, rank {config['lora.rank']}, "
        + seeds
    )
