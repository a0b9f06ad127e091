"""Which pictures a panel has: curves over the rounds, the devices in order, the end of each group, who has what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np
from fedlora.counted import counted

from fedlora_simulations.partition import EXAMPLES, OTHERS, Partition
from fedlora_simulations.reports.charts import MOST_BARS, Bar, BarChart, Line, LineChart, StackChart
from fedlora_simulations.reports.groups import Group, Panel
from fedlora_simulations.reports.measures import Measure, is_extra, measure_of
from fedlora_simulations.reports.run import RunResult
from fedlora_simulations.reports.student import Interval

ACCURACIES = ("test.accuracy", "scores.accuracy", "accuracy.mean")  # the first that is there leads
_AFTER = (
    "test.loss", "never_trained.accuracy", "never_trained.loss", "scores.accuracy", "accuracy.worst_tenth", "test.macro_f1",
    "test.mcc", "loss.worst_tenth", "loss.std",
    "aggregation_error", "seconds", "peak_mb",
)  # fmt: skip
_SEEDS = "Band: mean ± one standard deviation over the seeds."


def leading(panel: Panel) -> list[str]:
    """The keys that are drawn large: the loss, and beside it the accuracy, or what else tells of the test set."""
    keys = keys_of(panel)
    second = next((key for key in (*ACCURACIES, "test.loss") if key in keys), "")
    return [key for key in ("loss", second) if key in keys]


def keys_of(panel: Panel) -> list[str]:
    """Of the numbers of any of its groups."""
    return list(dict.fromkeys(key for group in panel.groups for key in group.measured()))


def curves(panel: Panel) -> tuple[list[LineChart], list[LineChart]]:
    """(those drawn large, the others) of the groups whose rounds are known."""
    traced = tuple(group for group in panel.groups if group.is_traced)
    if not traced:
        return [], []
    large, keys = leading(panel), keys_of(panel)
    more = [key for key in _AFTER if key in keys] + [key for key in keys if is_extra(key) and _is_drawn(key)]
    alone = traced[0].runs[0] if len(traced) == 1 and len(traced[0].runs) == 1 else None
    found = [_of_devices(alone, panel) if alone and key == "loss" else _curve(traced, key, panel) for key in large]
    others = [_curve(traced, key, panel) for key in more if key not in large]
    others.insert(next((n for n, c in enumerate(others) if c.name == "seconds"), len(others)), _traffic(traced))
    return [chart for chart in found if chart.lines], [chart for chart in others if chart.lines]


def sorted_devices(panel: Panel) -> LineChart | None:
    """The losses after the last round from the best device to the worst, beside those of the base."""
    lines = []
    for number, group in enumerate(panel.groups):
        if losses := sorted(device_means(group, "loss").values()):
            lines.append(_in_order(group.name, losses, number))
    if not lines:
        return None
    first = panel.groups[0]
    if len({group.data() for group in panel.groups}) == 1 and (base := sorted(device_means(first, "loss", 0).values())):
        lines.append(_in_order("base", base, len(panel.groups)))
    return LineChart(
        name="devices", title="Devices from best to worst", x_label="share of the devices", x_is_share=True,
        y_label=_loss_label(panel), lines=tuple(lines), note="Held-out loss after the last round, each device on its own.",
    )  # fmt: skip


def device_means(group: Group, part: str, server_round: int | None = None) -> dict[str, float]:
    """{device: mean over the seeds} after a round, the last of the group unless told; of those that all seeds measured."""
    found = []
    for run in group.runs:
        last = group.last_round if server_round is None else server_round
        measured = [record for record in run.records if record["round"] <= last and record.get(part)]
        if server_round == 0:
            measured = measured[:1] if measured and measured[0]["round"] == 0 else []
        found.append(measured[-1][part] if measured else {})
    names = set(found[0]).intersection(*found[1:]) if found else set()
    return {name: fmean(values[name] for values in found) for name in sorted(names)}


def ends(panel: Panel, key: str) -> BarChart | None:
    """The final number of each group, with the deviation over its seeds; with one group there is nothing to compare."""
    measure, bars = measure_of(key), []
    for number, group in enumerate(panel.groups):
        if (end := group.final(key)) is not None:
            spread = end.deviation or 0.0
            bars.append(
                Bar(name=group.name, mean=end.mean, low=end.mean - spread, high=end.mean + spread, number=number)
            )
    if len(bars) < 2:
        return None
    bars.sort(key=lambda bar: bar.mean if measure.less_is_better else -bar.mean)
    levels = [("pooled", fmean(panel.pooled.values()))] if key == "loss" and panel.pooled else []
    return BarChart(
        name=f"final-{_file(key)}", title=f"{_title(measure)} at the end", x_label=_label(measure, panel),
        is_share=measure.is_share, bars=tuple(bars), levels=tuple(levels),
        note="Mean ± one standard deviation over the seeds.",
    )  # fmt: skip


def distances(panel: Panel, against: Group, key: str, found: Mapping[str, Interval]) -> BarChart | None:
    """The paired differences {group: interval} with what they may be; None where none has an interval."""
    measure, numbers = measure_of(key), {group.name: number for number, group in enumerate(panel.groups)}
    bars = [
        Bar(name=name, mean=one.mean, low=one.low, high=one.high, number=numbers[name])
        for name, one in found.items()
        if one.low is not None and one.high is not None
    ]
    if not bars:
        return None
    better = "left" if measure.less_is_better else "right"
    return BarChart(
        name=f"difference-{_file(key)}", title=f"{_title(measure)}: difference from {against.name}",
        x_label=f"difference, {_label(measure, panel)}".rstrip(", "), is_share=measure.is_share, bars=tuple(bars),
        levels=((against.name, 0.0),), note=f"Paired by seed, with 95% confidence; better is to the {better}.",
    )  # fmt: skip


def partitions(runs: Iterable[RunResult]) -> list[StackChart]:
    """Each partition that differs, once."""
    found: list[tuple[str, Partition]] = []
    for run in runs:
        if run.partition is not None and all(run.partition != one for _, one in found):
            found.append((run.name, run.partition))
    return [
        partition_chart(
            one, name=f"partition{'-' + str(number) if number > 1 else ''}", of=name if len(found) > 1 else ""
        )
        for number, (name, one) in enumerate(found[:4], 1)
    ]


def partition_chart(partition: Partition, name: str = "partition", of: str = "") -> StackChart:
    """Who has what: a bar for each device, cut by label or topic."""
    kinds = partition.kinds
    test = f" The test set has {partition.test} more." if partition.test else ""
    note = f"Examples that a device trains on or holds out.{test}"
    if (count := len(partition.devices)) > MOST_BARS:
        note += f" Drawn are the first {MOST_BARS} of {counted(count, 'device')}."
    return StackChart(
        name=name, title=f"Who has what{': ' + of if of else ''}", x_label="examples",
        kinds=tuple(kinds), bars=tuple((device, tuple(counts)) for device, counts in partition.rows()),
        has_others=OTHERS in kinds and kinds[-1] == OTHERS, one_kind=kinds == [EXAMPLES], note=note,
    )  # fmt: skip


def _curve(groups: Sequence[Group], key: str, panel: Panel) -> LineChart:
    measure, lines, has_band = measure_of(key), [], False
    for group in groups:
        points = group.points(key)
        if not points:
            continue
        band = tuple((p.mean - p.deviation, p.mean + p.deviation) for p in points if p.deviation is not None)
        has_band = has_band or len(band) == len(points)
        lines.append(
            Line(
                name=group.name, x=tuple(p.round for p in points), y=tuple(p.mean for p in points),
                bands=(band,) if len(band) == len(points) else (), number=panel.groups.index(group),
                hollow=_of_fewer(group) if key.startswith("loss") else frozenset(),
            )
        )  # fmt: skip
    hollow = any(line.hollow for line in lines)
    notes = [
        _SEEDS if has_band and key in leading(panel) else "",
        "Hollow: the mean of fewer devices." if hollow else "",
        _NOTES.get(key, ""),
    ]
    levels = [("pooled", fmean(panel.pooled.values()))] if key == "loss" and panel.pooled else []
    return LineChart(
        name=_file(key), title=_title(measure), y_label=_label(measure, panel), lines=tuple(lines), levels=tuple(levels),
        is_share=measure.is_share, from_zero=measure.from_zero, note=" ".join(filter(None, notes)),
    )  # fmt: skip


def _of_devices(run: RunResult, panel: Panel) -> LineChart:
    """The loss of one run: the mean, and how far its devices lie apart."""
    measured = [record for record in run.records if record["loss"]]
    losses = [np.array(list(record["loss"].values()), np.float64) for record in measured]
    bands: list[tuple[tuple[float, float], ...]] = []
    if any(len(each) > 1 for each in losses):
        bands.append(tuple((float(each.min()), float(each.max())) for each in losses))
        quarters = [np.quantile(each, (0.25, 0.75)) for each in losses]
        bands.append(tuple((float(low), float(high)) for low, high in quarters))
    hollow = _of_fewer(panel.groups[0])
    line = Line(
        name="mean of the devices", x=tuple(r["round"] for r in measured), y=tuple(float(each.mean()) for each in losses),
        bands=tuple(bands), hollow=hollow,
    )  # fmt: skip
    told = "Light: from the best device to the worst; darker: the middle half; line: the mean." if bands else ""
    return LineChart(
        name="loss", title="Held-out loss", y_label=_loss_label(panel), lines=(line,) if measured else (),
        note=f"{told}{' Hollow: the mean of fewer devices.' if hollow else ''}".strip(),
    )  # fmt: skip


def _traffic(groups: Sequence[Group]) -> LineChart:
    """MB a round, all devices together: both ways of one group, the sum of each of several."""
    lines = []
    for number, group in enumerate(groups):
        down, up = group.points("mb_down"), group.points("mb_up")
        x = tuple(float(p.round) for p in down)
        if len(groups) == 1:
            lines += [Line(name=name, x=x, y=tuple(p.mean for p in points), number=place)
                      for place, (name, points) in enumerate((("down", down), ("up", up))) if points]  # fmt: skip
        elif down and len(down) == len(up):
            both = tuple(one.mean + other.mean for one, other in zip(down, up, strict=True))
            lines.append(Line(name=group.name, x=x, y=both, number=number))
    return LineChart(
        name="megabytes", title="Bytes", y_label="MB a round", lines=tuple(lines), from_zero=True,
        note="All devices together" + ("." if len(groups) == 1 else ", down and up."),
    )  # fmt: skip


def _in_order(name: str, losses: Sequence[float], number: int) -> Line:
    count = len(losses)
    return Line(name=name, x=tuple((place + 0.5) / count for place in range(count)), y=tuple(losses), number=number)


def _of_fewer(group: Group) -> frozenset[float]:
    """Rounds whose mean is over fewer devices than in other rounds, of any seed."""
    return frozenset(
        float(record["round"]) for run in group.runs for record in run.records if 0 < len(record["loss"]) < run.whole
    )


def _is_drawn(key: str) -> bool:
    return any(word in key for word in ("loss", "accuracy"))


def _title(measure: Measure) -> str:
    return measure.title[:1].upper() + measure.title[1:]


def _label(measure: Measure, panel: Panel) -> str:
    return _loss_label(panel) if "loss" in measure.key else _UNITS.get(measure.key, "")


def _loss_label(panel: Panel) -> str:
    return f"nats per {panel.unit}"


def _file(key: str) -> str:
    """A key as the name of a file: it may be a stranger's."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in key)[:60] or "measure"


_UNITS = {"seconds": "seconds", "peak_mb": "MB", "mb_down": "MB", "mb_up": "MB"}
_NOTES = {
    "aggregation_error": "The relative Frobenius distance of the committed update from the weighted mean of all B A.",
    "peak_mb": "Of a device's process, the largest of all devices.",
    "seconds": "A round, with training, aggregating and measuring.",
}
