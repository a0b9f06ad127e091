"""The tables of a panel: what each group reached, beside base and pooled training; differences by seed; its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from fedlora_simulations.reports.figures import ACCURACIES, device_means, keys_of
from fedlora_simulations.reports.groups import Group, Panel
from fedlora_simulations.reports.measures import Measure, is_extra, measure_of
from fedlora_simulations.reports.student import Interval
from fedlora_simulations.reports.tables import Cell, Table, absent, name_cell, number_cell, table

_COLUMNS = (
    "loss", "loss.worst_tenth", "test.loss", "test.accuracy", "test.macro_f1", "test.mcc", "scores.accuracy",
    "never_trained.loss", "never_trained.accuracy", "aggregation_error", "mb_down", "mb_up", "seconds", "kb_down", "kb_up",
)  # fmt: skip
_OF_THE_BASE = (
    "loss",
    "test",
    "scores",
    "accuracy",
    "never_trained",
)  # first parts of keys that are measured before the first round
NOT_MEASURED = "not measured"
EXAMPLES = {  # what is counted, and what it is called
    "examples": "examples trained on", "cut_examples": "cut", "left_out_examples": "left out",
    "held_out_examples": "held out", "held_out_left_out": "left out of these",
}  # fmt: skip


def results_table(panel: Panel, full: Mapping[str, float] | None = None) -> Table:
    """A row for each group, and for what it is held against; `full` has the losses of full fine-tunings by name."""
    keys = [key for key in _COLUMNS if key in keys_of(panel)]
    rows = _base_rows(panel, keys)
    rows.append(_alone_row(panel, keys))
    rows += [_group_row(panel, group, keys) for group in panel.groups]
    pooled = list(panel.pooled.values())
    mean = fmean(pooled) if pooled else None
    spread = stdev(pooled) if len(pooled) > 1 else None
    rows.append(_level_row("pooled", mean, keys, spread=spread, seeds=len(pooled)))
    elsewhere: Mapping[str, float | None] = full or {"full fine-tuning": None}
    for name, loss in elsewhere.items():
        rows.append(_level_row(name, loss, keys))
    headings = ["", "seeds", *(measure_of(key).title for key in keys)]
    if pooled and "loss" in keys:
        headings.append("way to pooled")
        rows = [[*row, _way(panel, row[0].text, row[2].value)] for row in rows]
    return table(
        "results", "Results", headings, rows,
        note=f"Mean ± standard deviation over the seeds, after the last round; losses in nats per {panel.unit}. Bytes and "
        "seconds are of all rounds and devices together. The best of a column is bold.",
    )  # fmt: skip


def differences(panel: Panel, against: Group) -> dict[str, dict[str, Interval]]:
    """{key: {group: paired difference from `against`}}, of those that share seeds and data with it."""
    keys = keys_of(panel)
    accuracy = next((key for key in ACCURACIES if key in keys), "")
    found: dict[str, dict[str, Interval]] = {}
    for key in ("loss", "test.loss", accuracy, "test.macro_f1"):
        if key not in keys:
            continue
        intervals = {
            group.name: one
            for group in panel.groups
            if group is not against and (one := panel.difference(group, against, key)) is not None
        }
        if intervals:
            found[key] = intervals
    return found


def differences_table(panel: Panel, against: Group, found: Mapping[str, Mapping[str, Interval]]) -> Table:
    """Each group's difference from `against`, with its interval and p; why there is none where there is none."""
    rows = []
    for key, intervals in found.items():
        measure = measure_of(key)
        for group in panel.groups:
            if group is against:
                continue
            unit = ", points" if measure.is_share else ""
            start = [name_cell(group.name), name_cell(f"{measure.title}{unit}")]
            one = intervals.get(group.name)
            if one is None:
                shared = set(group.finals(key)) & set(against.finals(key))
                rows.append([*start, absent("no seed in common" if not shared else "other data"), *([absent()] * 3)])
            else:
                rows.append([*start, *_interval_cells(measure, one)])
    return table(
        "differences",
        f"Differences from {against.name}",
        ["", "of", "difference", "95% interval", "p", "pairs"],
        rows,
        columns=(False, False, True, True, True, True),
        note="Paired by seed: the mean of the differences, and Student's interval. Bold: 0 lies outside. p is not "
        "corrected for the number of comparisons.",
    )  # fmt: skip


def devices_table(panel: Panel) -> Table | None:
    """The best, the median and the worst device of each group, by name."""
    rows = []
    for part, key in (("loss", "loss"), ("accuracy", "accuracy.mean")):
        measure = measure_of(key)
        for group in panel.groups:
            values = device_means(group, part)
            if not values:
                continue
            less = part == "loss"
            ranked = sorted(values, key=lambda name: (values[name] if less else -values[name], name))
            picked = (ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1])
            whole = max(len(values), *(run.whole for run in group.runs))
            told = str(len(values)) if len(values) == whole else f"{len(values)} of {whole}"
            what = "loss" if less else "accuracy"
            rows.append(
                [name_cell(group.name), name_cell(what)]
                + [
                    Cell(text=f"{name_cell(name).text} ({measure.text(values[name])})", is_number=False)
                    for name in picked
                ]
                + [number_cell(told, float(len(values)))]
            )
    if not rows:
        return None
    return table(
        "devices", "Devices", ["", "of", "best", "median", "worst", "measured"], rows,
        columns=(False, False, False, False, False, True),
        note="After the last round, each device on its own held-out data; the mean over the seeds.",
    )  # fmt: skip


def examples_table(panel: Panel) -> Table | None:
    """How many examples each group trained on, cut and left out: all devices together, as they said last."""
    rows = []
    for group in panel.groups:
        totals = {key: sum(counts.values()) for key, counts in counts_of(group.runs[0].records).items()}
        if any(totals.values()):
            rows.append([name_cell(group.name), *(number_cell(str(totals[key]), totals[key]) for key in EXAMPLES)])
    if not rows:
        return None
    if len({tuple(cell.text for cell in row[1:]) for row in rows}) == 1:
        rows = [[name_cell("all devices together"), *rows[0][1:]]]
    return table("examples", "Examples", ["", *EXAMPLES.values()], rows)


def counts_of(records: Sequence[Mapping[str, object]]) -> dict[str, dict[str, int]]:
    """{what is counted: {device: examples}}, as the devices said last; none in a run of an earlier version."""
    counts: dict[str, dict[str, int]] = {key: {} for key in EXAMPLES}
    for record in records:
        for key in EXAMPLES:
            told = record.get(key)
            counts[key] |= told if isinstance(told, dict) else {}
    return counts


def rates_table(panel: Panel) -> Table | None:
    """The losses by learning rate where it was chosen; the choice bold, and told where it is at the edge of the grid."""
    grid = sorted({lr for tried in panel.rates.values() for lr in tried})
    if len(grid) < 2:
        return None
    chosen = {group.name: float(group.config["train.lr"]) for group in panel.groups}
    rows = []
    for name, tried in panel.rates.items():
        cells = [name_cell(name)]
        mine = chosen.get(name, min(tried, key=lambda lr: (tried[lr], lr)))
        cells += [
            number_cell(f"{tried[lr]:.3f}", tried[lr], is_best=lr == mine) if lr in tried else absent() for lr in grid
        ]
        cells.append(name_cell("at the edge of the grid" if mine in (grid[0], grid[-1]) else ""))
        rows.append(cells)
    return table(
        "learning-rates", "Learning rates", ["", *(f"{lr:g}" for lr in grid), ""], rows,
        columns=(False, *([True] * len(grid)), False),
        note="Final held-out loss by train.lr, where it was tuned. Bold: the choice.",
    )  # fmt: skip


def extra_table(panel: Panel) -> Table | None:
    """Groups of numbers that this version does not know, as they stand in the metrics: first and last."""
    rows = []
    for key in (key for key in keys_of(panel) if is_extra(key)):
        measure = measure_of(key)
        for group in panel.groups:
            first, last = group.first(key), group.final(key)
            if last is not None:
                before = absent() if first is None else number_cell(measure.text(first), first)
                rows.append(
                    [
                        name_cell(measure.title),
                        name_cell(group.name),
                        before,
                        _value(measure, last.mean, last.deviation),
                    ]
                )
    if not rows:
        return None
    return table(
        "more", "More measures", ["", "of", "base", "after the last round"], rows,
        columns=(False, False, True, True), note="Other groups of numbers in the runs' metrics.",
    )  # fmt: skip


def _base_rows(panel: Panel, keys: Sequence[str]) -> list[list[Cell]]:
    """What the base is before the first round: a row for each base and data."""
    by_data: dict[tuple[object, ...], list[Group]] = {}
    for group in panel.groups:
        by_data.setdefault(group.data(), []).append(group)
    rows = []
    for groups in by_data.values():
        name = "base" if len(by_data) == 1 else f"base of {groups[0].name}"
        cells = [name_cell(name), absent()]
        for key in keys:
            firsts = [value for group in groups if (value := group.first(key)) is not None]
            if firsts and key.partition(".")[0] in _OF_THE_BASE:
                cells.append(_value(measure_of(key), fmean(firsts)))
            else:
                cells.append(absent(NOT_MEASURED if key == "loss" else ""))
        rows.append(cells)
    return rows


def _alone_row(panel: Panel, keys: Sequence[str]) -> list[Cell]:
    """What devices reach that train by themselves, where a run measured it."""
    found = [fmean(run.alone.values()) for group in panel.groups for run in group.runs if run.alone]
    spread = stdev(found) if len(found) > 1 else None
    return _level_row("alone", fmean(found) if found else None, keys, spread=spread, seeds=len(found))


def _level_row(
    name: str, loss: float | None, keys: Sequence[str], *, spread: float | None = None, seeds: int = 0
) -> list[Cell]:
    cells = [name_cell(name), number_cell(str(seeds), seeds) if seeds else absent()]
    for place, key in enumerate(keys):
        if key == "loss" and loss is not None:
            cells.append(_value(measure_of(key), loss, spread))
        else:
            cells.append(absent(NOT_MEASURED if place == 0 and loss is None else ""))
    return cells


def _group_row(panel: Panel, group: Group, keys: Sequence[str]) -> list[Cell]:
    cells = [name_cell(group.name), number_cell(str(len(group.runs)), len(group.runs))]
    for key in keys:
        measure, end = measure_of(key), group.final(key)
        if end is None:
            cells.append(absent())
            continue
        others = [other.mean for each in panel.groups if (other := each.final(key)) is not None]
        best = (min if measure.less_is_better else max)(others)
        is_best = (
            measure.less_is_better is not None and len(others) > 1 and measure.text(end.mean) == measure.text(best)
        )
        cells.append(
            _value(measure, end.mean, end.deviation, is_best=is_best and len(set(map(measure.text, others))) > 1)
        )
    return cells


def _value(measure: Measure, mean: float, deviation: float | None = None, *, is_best: bool = False) -> Cell:
    text = measure.text(mean)
    if deviation is not None and any(digit in measure.text(deviation) for digit in "123456789"):
        text += f" ± {measure.text(deviation)}"
    return Cell(text=text, value=mean, spread=deviation, is_best=is_best)


def _way(panel: Panel, name: str, loss: float | None) -> Cell:
    """How much of the way from the base to pooled training a row has gone."""
    bases = [value for group in panel.groups if (value := group.first("loss")) is not None]
    base = fmean(bases) if bases else None
    if loss is None or base is None or name.startswith("base"):
        return absent()
    whole = base - fmean(panel.pooled.values())
    return number_cell(f"{(base - loss) / whole:.0%}", (base - loss) / whole) if whole > 0 else absent()


def _interval_cells(measure: Measure, one: Interval) -> list[Cell]:
    cells = [number_cell(measure.difference(one.mean), one.mean, is_best=one.is_clear)]
    if one.low is None or one.high is None or one.p is None:
        return [*cells, absent("one pair"), absent(), number_cell(str(one.count), one.count)]
    reach = f"{measure.difference(one.low)} to {measure.difference(one.high)}"
    p = "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
    return [*cells, number_cell(reach), number_cell(p, one.p), number_cell(str(one.count), one.count)]
