"""A run's report: one HTML file with its plots inside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from fedlora.files.atomic import write_text
from fedlora_server.run.device_costs import COST_UNITS, median_costs
from fedlora_server.run.loss_over_devices import loss_over_devices
from fedlora_server.run.run_directory import CONFIG, devices_to_measure, loss_unit, read_metrics
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedlora_simulations.partition import partition_plot, read_partition
from fedlora_simulations.plots import svg

REPORT = "report.html"
COUNTS = {  # of examples, and what they are called
    "examples": "examples trained on", "cut_examples": "cut", "left_out_examples": "left out",
    "held_out_examples": "held out", "held_out_left_out": "left out of these",
}  # fmt: skip
SCORES = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "Matthews"}
Record = dict[str, Any]


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html from what the run left there, and return its path."""
    run = Path(run)
    records = read_metrics(run)
    config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    unit = loss_unit(run)
    trained = [record for record in records if record["round"]]
    excluded: Counter[str] = Counter()
    for record in records:
        excluded.update(record["excluded"])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("fedlora_simulations", "."), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        config=config,
        records=records,
        mean_loss=[_mean(record["loss"]) for record in records],
        over=[loss_over_devices(record["loss"], record.get("held_out_examples", {})) for record in records],
        whole=devices_to_measure(records),
        unit=unit,
        devices=_devices(records),
        totals=_totals(records),
        costs=(costs := median_costs(trained)),
        cost_units={name: unit for name, unit in COST_UNITS.items() if any(name in told for told in costs.values())},
        excluded=dict(excluded),
        loss_plot=_svg(partial(_plot_loss, unit=unit), records),
        score_plot=_svg(_plot_scores, records) if any(_has_scores(record) for record in records) else "",
        last_scores=_last_scores(records),
        score_names=SCORES,
        partition_plot="" if (partition := read_partition(run)) is None else partition_plot(partition),
        bytes_plot=_svg(_plot_bytes, records),
        error_plot=_svg(_plot_error, trained) if any(r["aggregation_error"] is not None for r in trained) else "",
    )
    write_text(run / REPORT, page)
    return run / REPORT


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One device of a run: None where it was not measured, or said nothing of its data."""

    name: str
    before: float | None
    after: float | None
    counts: tuple[int | None, ...]  # as COUNTS


def _devices(records: Sequence[Record]) -> list[DeviceRow]:
    """Every device that was heard, with its losses before the first round and after the last."""
    first, last, counts = records[0]["loss"], records[-1]["loss"], _counts(records)
    names = {name for record in records for part in ("loss", "train_loss") for name in record[part]}
    return [
        DeviceRow(
            name=name, before=first.get(name), after=last.get(name), counts=tuple(counts[key].get(name) for key in COUNTS)
        )
        for name in sorted(names)
    ]  # fmt: skip


def _counts(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """{what is counted: {device: examples}}, as the devices said last; none in a run of an earlier version."""
    counts: dict[str, dict[str, int]] = {key: {} for key in COUNTS}
    for record in records:
        for key in COUNTS:
            counts[key] |= record.get(key, {})
    return counts


def _totals(records: Sequence[Record]) -> dict[str, int]:
    """The same over all devices; empty where no device said anything."""
    counts = _counts(records)
    return {heading: sum(counts[key].values()) for key, heading in COUNTS.items()} if any(counts.values()) else {}


def _mean(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) / len(losses) if losses else None


def _svg(draw: Callable[[Axes, Sequence[Record]], None], records: Sequence[Record]) -> str:
    def drawn(axes: Axes) -> None:
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        draw(axes, records)

    return svg(drawn)


def _plot_loss(axes: Axes, records: Sequence[Record], unit: str) -> None:
    names = sorted({name for record in records for name in record["loss"]})
    few = len(names) <= 10  # with more, single devices are a grey cloud behind their mean
    for name in names:
        points = [(record["round"], record["loss"][name]) for record in records if name in record["loss"]]
        style = {"label": name.replace("$", r"\$")} if few else {"color": "0.75", "linewidth": 0.7}
        axes.plot(*zip(*points, strict=True), marker="o" if few else "", markersize=3, **style)
    means = [(record["round"], _mean(record["loss"])) for record in records if record["loss"]]
    if means:
        axes.plot(*zip(*means, strict=True), color="black", linewidth=2, label="mean")
        whole = devices_to_measure(records)
        fewer = [(record["round"], _mean(record["loss"])) for record in records if 0 < len(record["loss"]) < whole]
        if fewer:
            axes.plot(
                *zip(*fewer, strict=True), "o", color="white", markeredgecolor="black", label="mean of fewer devices"
            )
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_ylabel(f"held-out loss, nats per {unit}")


def _has_scores(record: Record) -> bool:
    return bool(record.get("scores") or record.get("test"))


def _last_scores(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """{what was measured: {measure: value}} after the last round that was."""
    last = next((record for record in reversed(records) if _has_scores(record)), {})
    parts = {"held-out texts of all devices": last.get("scores", {}), "test set": last.get("test", {})}
    return {part: {name: values[name] for name in SCORES if name in values} for part, values in parts.items() if values}


def _plot_scores(axes: Axes, records: Sequence[Record]) -> None:
    """Accuracy where texts have labels; of other test sets the loss."""
    for name in sorted({name for record in records for name in record.get("accuracy", {})}):
        points = [(r["round"], r["accuracy"][name]) for r in records if name in r.get("accuracy", {})]
        axes.plot(*zip(*points, strict=True), color="0.75", linewidth=0.7)
    labelled = any("accuracy" in record.get(part, {}) for record in records for part in ("scores", "test"))
    measure = "accuracy" if labelled else "loss"
    for part, label, color in (("scores", "held-out, all devices", "black"), ("test", "test set", "tab:blue")):
        points = [(r["round"], r[part][measure]) for r in records if measure in r.get(part, {})]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=2, color=color, label=label)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_ylabel(measure)


def _plot_bytes(axes: Axes, records: Sequence[Record]) -> None:
    rounds = [record["round"] for record in records]
    axes.bar([r - 0.2 for r in rounds], [record["bytes_down"] / 1e6 for record in records], 0.4, label="down")
    axes.bar([r + 0.2 for r in rounds], [record["bytes_up"] / 1e6 for record in records], 0.4, label="up")
    axes.legend(frameon=False)
    axes.set_ylabel("MB, all devices together")


def _plot_error(axes: Axes, records: Sequence[Record]) -> None:
    points = [(r["round"], 100 * r["aggregation_error"]) for r in records if r["aggregation_error"] is not None]
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("aggregation error, %")
