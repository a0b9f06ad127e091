"""A picture as the text of an SVG: the same bytes for the same numbers, without a file of its own."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def svg(draw: Callable[[Axes], None], width: float = 8, height: float = 3.6) -> str:
    """What `draw` draws, in inches."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedlora", "font.size": 10}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=False, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
