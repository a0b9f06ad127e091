"""The final losses of a study as a picture: DIR/losses.svg."""

from __future__ import annotations

from math import isnan
from pathlib import Path

from fedlora.files.atomic import write_text

from fedlora_simulations.reports.charts import Bar, BarChart
from fedlora_simulations.reports.drawing import WIDE, panels_svg
from fedlora_simulations.study.definition import Study
from fedlora_simulations.study.numbers import BASE, lines, loss_unit
from fedlora_simulations.study.results import Results

PLOT = "losses.svg"


def write_plot(study: Study, results: Results, directory: Path) -> Path:
    """One panel per setting: mean and standard deviation of each method, and the pooled run as a line."""
    label = f"held-out loss after the last round, nats per {loss_unit(study, results)}"
    charts = [_chart(study, results, setting, label) for setting in study.settings]
    write_text(directory / PLOT, panels_svg(charts, WIDE))
    return directory / PLOT


def _chart(study: Study, results: Results, setting: str, label: str) -> BarChart:
    found = [line for line in lines(study, results, setting) if not isnan(line.loss)]
    rows = list(study.methods)
    bars = []
    for line in (line for line in found if line.is_method):
        spread = 0.0 if isnan(line.deviation) else line.deviation
        bars.append(
            Bar(
                name=line.name,
                mean=line.loss,
                low=line.loss - spread,
                high=line.loss + spread,
                number=rows.index(line.name),
            )
        )
    # The base is far to the right, and in the table.
    levels = tuple((line.name, line.loss) for line in found if not line.is_method and line.name != BASE)
    return BarChart(name="losses", title=setting, x_label=label, bars=tuple(bars), levels=levels)
