"""A picture drawn: as SVG, PDF, or the rows of a CSV. The same bytes for the same numbers.

Units are pixels of a page on which the picture has its own size: 360 wide for one of several beside each other, 800 for one
that has the page's width. Text has 12 of them, so it can be read at either.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatch
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
from fedlora.errors import printable
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from fedlora_simulations.reports.charts import Bar, BarChart, Chart, Line, LineChart, StackChart
from fedlora_simulations.reports.palette import (
    CARD,
    LINE,
    MUTED,
    OTHERS,
    TEXT,
    colour,
    dashes,
    marker,
    with_variables,
)

NARROW, WIDE = 360, 800  # pixels
_PER_INCH = 72
_LONGEST = {NARROW: 18, WIDE: 28}  # characters of a name beside an axis; the tables have it whole
_LONGEST_SAID = 160  # of a title or a label: matplotlib takes its time for each
_MOST_NAMES = 60  # beside one axis
_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 12, "text.color": TEXT, "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.labelsize": 12, "xtick.labelsize": 12, "ytick.labelsize": 12, "grid.color": LINE, "axes.facecolor": CARD,
    "figure.facecolor": CARD, "legend.fontsize": 12, "legend.labelcolor": TEXT, "axes.titlesize": 13,
}  # fmt: skip


def svg(chart: Chart, width: int = NARROW, *, titled: bool = True, mark: str = "") -> str:
    """An SVG; with its title and legend inside where it stands alone."""
    buffer = io.BytesIO()
    _draw(chart, width, buffer, "svg", titled=titled, mark=mark)
    return _tidied(buffer, chart.title)


def inline(chart: Chart, width: int = NARROW, mark: str = "") -> str:
    """The SVG for a page that has the title, the legend and the colours; `mark` tells it from others of its name there."""
    return with_variables(svg(chart, width, titled=False, mark=mark))


def pdf(chart: Chart, width: int = NARROW) -> bytes:
    """A PDF with its title and legend."""
    buffer = io.BytesIO()
    _draw(chart, width, buffer, "pdf", titled=True)
    return buffer.getvalue()


def panels_svg(charts: Sequence[Chart], width: int) -> str:
    """Several pictures of one kind, one below another, each with its title, as one SVG."""
    heights = [height_of(chart, width) + 24 for chart in charts]
    buffer, title = io.BytesIO(), ", ".join(chart.title for chart in charts)
    with look(f"{charts[0].name} {width}"):
        figure = Figure(figsize=(width / _PER_INCH, sum(heights) / _PER_INCH), layout="constrained")
        panels = figure.subplots(len(charts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, chart in zip(panels, charts, strict=True):
            _plot(chart, axes, width)
            axes.set_title(_said(chart.title), loc="left", pad=18, color=TEXT)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _tidied(buffer, title)


def height_of(chart: Chart, width: int) -> int:
    """Of the part with the axes: a row of a table of bars has the same height however many there are."""
    if isinstance(chart, BarChart):
        return 76 + 34 * max(len(chart.bars), 2)
    if isinstance(chart, StackChart):
        return min(70 + (22 if len(chart.drawn) <= _MOST_NAMES else 10) * max(len(chart.drawn), 3), 2400)
    return 300 if width > NARROW else 250


@contextmanager
def look(salt: str) -> Iterator[None]:
    """The look of all pictures; `salt` makes the names within an SVG those of this picture alone."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"fedlora {salt}"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have characters that the font lacks: a browser's has them
        yield


def _tidied(buffer: io.BytesIO, title: str) -> str:
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(g|svg) id=\"[^\"]*\"", r"<\1", text)  # those of several pictures in one page would be the same
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(printable(title))}" ', 1)


def figure_of(chart: Chart, width: int, *, titled: bool) -> Figure:
    """The picture, laid out when it is written; drawn within `look`."""
    names = [_literal(_shown(name, width)) for name, _ in chart.legend] if titled else []
    columns = 1 if width <= NARROW else 2
    height = height_of(chart, width) + (28 + 20 * -(-len(names) // columns) if titled else 0)
    figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), layout="constrained")
    handles = _plot(chart, figure.subplots(), width)
    if titled:
        figure.suptitle(_said(chart.title), fontsize=13, x=0.02, ha="left", color=TEXT)
        if names:
            figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False)
    return figure


def _draw(chart: Chart, width: int, buffer: io.BytesIO, kind: str, *, titled: bool, mark: str = "") -> None:
    with look(f"{mark}{chart.name} {width}"):
        metadata = {"Date": None} if kind == "svg" else {"CreationDate": None, "Title": printable(chart.title)}
        figure_of(chart, width, titled=titled).savefig(buffer, format=kind, metadata=metadata)


@singledispatch
def _plot(chart: Chart, axes: Axes, width: int) -> Sequence[Artist]:
    """Draw into the axes; the handles of the legend."""
    raise TypeError(f"no way to draw {type(chart).__name__}")


@_plot.register
def _(chart: LineChart, axes: Axes, width: int) -> Sequence[Artist]:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    handles = [_line(line, axes) for line in chart.lines]
    for name, level in chart.levels:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            _literal(_shown(name, width)), (1, level), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right", color=MUTED,
        )  # fmt: skip
    axes.set_xlabel(_said(chart.x_label))
    axes.set_ylabel(_said(chart.y_label))
    values = [end for line in chart.lines for end in _ends(line)] + [level for _, level in chart.levels]
    least = 0.05 if chart.is_share else 0.0
    axes.set_ylim(*_with_room([*values, 0.0] if chart.from_zero else values, least=least))
    axes.set_xlim(*_with_room([x for line in chart.lines for x in line.x], share=0.04))
    _ticks(axes.yaxis, is_share=chart.is_share, most=5)
    if chart.x_is_share:
        _ticks(axes.xaxis, is_share=True, most=5)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return handles


@_plot.register
def _(chart: BarChart, axes: Axes, width: int) -> Sequence[Artist]:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.8)
    axes.set_axisbelow(True)
    for place, bar in enumerate(chart.bars):
        ink = colour(bar.number)
        axes.plot([bar.low, bar.high], [place, place], color=ink, linewidth=2.5, alpha=0.45, solid_capstyle="round")
        axes.plot(bar.mean, place, marker=marker(bar.number), color=ink, markersize=7, linestyle="")
    for name, level in chart.levels:
        axes.axvline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            _literal(_shown(name, width)), (level, 1), (0, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center", va="bottom", color=MUTED, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(chart.bars)), _beside_axis([bar.name for bar in chart.bars], width))
    axes.tick_params(axis="y", length=0, labelcolor=TEXT)
    axes.set_ylim(len(chart.bars) - 0.4, -0.6)
    axes.set_xlim(
        *_with_room([end for bar in chart.bars for end in _range(bar)] + [level for _, level in chart.levels])
    )
    axes.set_xlabel(_said(chart.x_label))
    _ticks(axes.xaxis, is_share=chart.is_share, most=5)
    return ()


@_plot.register
def _(chart: StackChart, axes: Axes, width: int) -> Sequence[Artist]:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.8)
    axes.set_axisbelow(True)
    left, handles = [0] * len(chart.drawn), list[Artist]()
    places = range(len(chart.drawn))
    for place in range(len(chart.kinds)):
        counts = [own[place] for _, own in chart.drawn]
        ink = OTHERS if chart.has_others and place == len(chart.kinds) - 1 else colour(place)
        bars = axes.barh(places, counts, left=left, height=0.72, color=ink, linewidth=0.8, edgecolor=CARD)
        handles.append(bars[0])
        left = [before + count for before, count in zip(left, counts, strict=True)]
    named = len(chart.drawn) <= _MOST_NAMES
    axes.set_yticks(places if named else [], _beside_axis([name for name, _ in chart.drawn], width) if named else [])
    axes.tick_params(axis="y", length=0, labelcolor=TEXT)
    axes.set_ylim(len(chart.drawn) - 0.4, -0.6)
    axes.set_xlim(0, max([*left, 1]) * 1.04)
    axes.set_xlabel(_said(chart.x_label))
    _ticks(axes.xaxis, is_share=False, most=5)
    return handles


def _line(line: Line, axes: Axes) -> Artist:
    ink = colour(line.number)
    for place, band in enumerate(line.bands):
        low, high = [end for end, _ in band], [end for _, end in band]
        axes.fill_between(line.x, low, high, color=ink, alpha=0.13 + 0.12 * place, linewidth=0)
    few = len(line.x) <= 30
    (handle,) = axes.plot(
        line.x, line.y, color=ink, linewidth=2, linestyle=dashes(line.number), marker=marker(line.number) if few else "",
        markersize=5,
    )  # fmt: skip
    if hollow := [(x, y) for x, y in zip(line.x, line.y, strict=True) if x in line.hollow]:
        xs, ys = zip(*hollow, strict=True)
        axes.plot(xs, ys, linestyle="", marker=marker(line.number), markersize=6, color=CARD, markeredgecolor=ink)
    return handle


def _ends(line: Line) -> list[float]:
    return [*line.y, *(end for band in line.bands for pair in band for end in pair)]


def _range(bar: Bar) -> tuple[float, float, float]:
    return bar.low, bar.mean, bar.high


def _with_room(values: Sequence[float], share: float = 0.08, least: float = 0.0) -> tuple[float, float]:
    """From the least to the largest, and so much more on both sides that nothing lies on an edge."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * share or least or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _ticks(axis: mpl.axis.Axis, *, is_share: bool, most: int) -> None:
    axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]))
    if is_share:
        axis.set_major_formatter(PercentFormatter(1))
    else:
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-4, 5))
        axis.set_major_formatter(formatter)


def _shown(name: str, width: int) -> str:
    """A name as it has room in a picture of this width."""
    text, most = printable(name), _LONGEST[NARROW if width <= NARROW else WIDE]
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _beside_axis(names: Sequence[str], width: int) -> list[str]:
    """Names of rows: where some are too long, without the beginning that all share, so that they are still told apart."""
    most, texts = _LONGEST[NARROW if width <= NARROW else WIDE], [printable(name) for name in names]
    cut = 0
    if len(set(texts)) > 1 and max(map(len, texts)) > most:
        cut = next(place for place, each in enumerate(zip_longest(*texts)) if len(set(each)) > 1)
    return [_literal(_shown(f"…{text[cut:]}" if cut > 1 else text, width)) for text in texts]


def _said(text: str) -> str:
    """A title or a label, which may hold the names of a stranger's measures and units."""
    return _literal(printable(text[:_LONGEST_SAID]) + "…" * (len(text) > _LONGEST_SAID))


def _literal(text: str) -> str:
    """For matplotlib, which takes what stands between two dollars for a formula."""
    return text.replace("$", r"\$")
