"""The final losses of a study as a picture: DIR/losses.svg."""

from __future__ import annotations

import io
from math import isnan
from pathlib import Path

import matplotlib as mpl
from fedlora.files.atomic import write_text
from matplotlib.figure import Figure

from fedlora_simulations.study.definition import Study
from fedlora_simulations.study.numbers import BASE, lines, loss_unit
from fedlora_simulations.study.results import Results

PLOT = "losses.svg"


def write_plot(study: Study, results: Results, directory: Path) -> Path:
    """One panel per setting: mean and standard deviation of each method, and the pooled run as a line."""
    count = len(study.settings)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedlora", "font.size": 9}):
        figure = Figure(figsize=(7, count * (0.8 + 0.2 * len(study.methods))), layout="constrained")
        panels = figure.subplots(count, 1, squeeze=False)[:, 0]
        for axes, setting in zip(panels, study.settings, strict=True):
            found = [line for line in lines(study, results, setting) if not isnan(line.loss)]
            methods = [line for line in found if line.is_method]
            spread = [0.0 if isnan(line.deviation) else line.deviation for line in methods]
            names = [line.name.replace("$", r"\$") for line in methods]
            axes.errorbar([line.loss for line in methods], range(len(methods)), xerr=spread, fmt="o", markersize=4)
            axes.set_yticks(range(len(methods)), names)
            axes.invert_yaxis()
            for line in found:
                if not line.is_method and line.name != BASE:  # the base is far to the right, and in the table
                    axes.axvline(line.loss, color="0.5", linewidth=1, label=line.name)
                    axes.legend(frameon=False, fontsize=8)
            axes.set_title(setting, loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel(f"held-out loss after the last round, nats per {loss_unit(study, results)}")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=False, metadata={"Date": None})
    text = buffer.getvalue()
    write_text(directory / PLOT, text[text.index("<svg") :])
    return directory / PLOT
