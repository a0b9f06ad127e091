"""A run's report: one HTML file with its plots inside."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from fedlora.files.atomic import write_text
from fedlora_server.run.run_directory import CONFIG, read_metrics
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

REPORT = "report.html"
Record = dict[str, Any]


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html from what the run left there, and return its path."""
    run = Path(run)
    records = read_metrics(run)
    config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    trained = [record for record in records if record["round"]]
    excluded: Counter[str] = Counter()
    for record in records:
        excluded.update(record["excluded"])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("fedlora_simulations", "."), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        config=config,
        records=records,
        mean_loss=[_mean(record["loss"]) for record in records],
        devices=_devices(records),
        excluded=dict(excluded),
        loss_plot=_svg(_plot_loss, records),
        bytes_plot=_svg(_plot_bytes, records),
        error_plot=_svg(_plot_error, trained) if any(r["aggregation_error"] is not None for r in trained) else "",
    )
    write_text(run / REPORT, page)
    return run / REPORT


def _devices(records: Sequence[Record]) -> list[tuple[str, float, float]]:
    """(device, loss of the base, loss at the end) of every device measured in both."""
    first, last = records[0]["loss"], records[-1]["loss"]
    return [(name, first[name], last[name]) for name in sorted(first) if name in last]


def _mean(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) / len(losses) if losses else None


def _svg(draw: Any, records: Sequence[Record]) -> str:
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedlora", "font.size": 10}):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        draw(axes, records)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=False, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _plot_loss(axes: Axes, records: Sequence[Record]) -> None:
    names = sorted({name for record in records for name in record["loss"]})
    few = len(names) <= 10  # with more, single devices are a grey cloud behind their mean
    for name in names:
        points = [(record["round"], record["loss"][name]) for record in records if name in record["loss"]]
        style = {"label": name.replace("$", r"\$")} if few else {"color": "0.75", "linewidth": 0.7}
        axes.plot(*zip(*points, strict=True), marker="o" if few else "", markersize=3, **style)
    means = [(record["round"], _mean(record["loss"])) for record in records if record["loss"]]
    if means:
        axes.plot(*zip(*means, strict=True), color="black", linewidth=2, label="mean")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_ylabel("held-out loss, nats per token")


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
