"""What a picture looks like, measured: no point on an axis, no label cut off, room for every row; the page's colours."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from fedlora_simulations.partition import Partition
from fedlora_simulations.reports.charts import Bar, BarChart, Chart, Line, LineChart
from fedlora_simulations.reports.drawing import NARROW, WIDE, figure_of, inline, look, panels_svg, svg
from fedlora_simulations.reports.figures import partition_chart
from fedlora_simulations.reports.palette import SERIES, colour, dashes, marker, with_variables
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.simulations.reports.parsed import pictures, texts

LONG = "a device whose name is much longer than any axis has room for"


def lines(*values: tuple[float, ...], is_share: bool = False, from_zero: bool = False) -> LineChart:
    drawn = tuple(
        Line(name=f"line {n}", x=tuple(map(float, range(len(y)))), y=y, number=n) for n, y in enumerate(values)
    )
    return LineChart(
        name="x", title="Title", y_label="nats per token", lines=drawn, is_share=is_share, from_zero=from_zero
    )


def bars(count: int, name: str = "method") -> BarChart:
    return BarChart(
        name="x", title="Title", x_label="nats per token", levels=(("pooled", 0.5),),
        bars=tuple(Bar(name=f"{name} {n}", mean=n, low=n - 0.5, high=n + 0.5, number=n) for n in range(count)),
    )  # fmt: skip


def parts(count: int, name: str = "device") -> Chart:
    return partition_chart(
        Partition(devices={f"{name} {n}": {f"label {k}": 1 + n + k for k in range(4)} for n in range(count)})
    )


def drawn_by(figure: Figure) -> Any:
    """What drew it, which knows how large each text is."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


CHARTS: dict[str, Chart] = {
    "curves": lines((3.0, 2.0, 1.5), (3.0, 2.5, 2.0)),
    "one round": lines((3.0,)),
    "no change": lines((2.0, 2.0, 2.0)),
    "nothing but zeros": lines((0.0, 0.0), is_share=True, from_zero=True),
    "zeros beside others": lines((0.0, 0.0), (0.3, 0.2), is_share=True, from_zero=True),
    "huge": lines((1e9, 1e300)),
    "tiny": lines((1e-9, 2e-9)),
    "a hundred rounds": lines(tuple(1 / (1 + n) for n in range(100))),
    "two bars": bars(2),
    "thirty bars": bars(30),
    "long names": bars(3, LONG),
    "devices": parts(10),
    "one device": parts(1),
    "many devices": parts(200),
    "devices of long names": parts(5, LONG),
}


@pytest.mark.parametrize("titled", [False, True])
@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("name", CHARTS)
def test_nothing_is_cut_off_and_no_text_lies_on_another(name: str, width: int, titled: bool) -> None:
    with look("test"):
        figure = figure_of(CHARTS[name], width, titled=titled)
        renderer, whole = drawn_by(figure), figure.bbox
        [axes] = figure.axes
        texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label, *axes.texts]
        x, y = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        texts = [
            text for text in texts
            if text.get_text() and (text in (axes.xaxis.label, axes.yaxis.label, *axes.texts)
            or (text in axes.get_xticklabels() and x[0] <= text.get_position()[0] <= x[1])
            or (text in axes.get_yticklabels() and y[0] <= text.get_position()[1] <= y[1]))
        ]  # fmt: skip
        assert texts
        boxes = [text.get_window_extent(renderer) for text in texts]
        for text, box in zip(texts, boxes, strict=True):
            assert whole.x0 - 1 <= box.x0 < box.x1 <= whole.x1 + 1, text.get_text()
            assert whole.y0 - 1 <= box.y0 < box.y1 <= whole.y1 + 1, text.get_text()
        for (one, first), (other, second) in combinations(zip(texts, boxes, strict=True), 2):
            assert not first.padded(-1).overlaps(second.padded(-1)), (one.get_text(), other.get_text())


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize(
    "name", [name for name, chart in CHARTS.items() if not name.startswith(("devices", "one d", "many"))]
)
def test_no_point_lies_on_an_axis(name: str, width: int) -> None:
    with look("test"):
        figure = figure_of(CHARTS[name], width, titled=False)
        drawn_by(figure)
        [axes] = figure.axes
        inner = axes.bbox.padded(-2)
        drawn = [line for line in axes.lines if line.get_transform() == axes.transData]
        assert drawn
        for line in drawn:
            points = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
            assert all(inner.contains(*point) for point in points)


@pytest.mark.parametrize("count", [2, 3, 14, 30])
def test_a_row_has_the_same_room_however_many_there_are(count: int) -> None:
    with look("test"):
        figure = figure_of(bars(count), WIDE, titled=False)
        drawn_by(figure)
        [axes] = figure.axes
        places = axes.transData.transform([(0, 0), (0, 1)])
        assert 20 < abs(places[0][1] - places[1][1]) < 60
        assert figure.bbox.height >= 140


def test_the_panels_of_a_study_have_that_room_too() -> None:
    [picture] = pictures(panels_svg([bars(2), bars(3)], WIDE))
    assert float(picture.attrib["height"].removesuffix("pt")) >= 2 * 140


def test_48_lines_are_told_apart_by_colour_mark_or_dashes() -> None:
    assert len({(colour(n), marker(n), str(dashes(n))) for n in range(48)}) == 48


def test_on_the_page_every_colour_is_a_variable_and_a_text_is_left_alone() -> None:
    chart = LineChart(name="x", title="T", y_label="#17202a", lines=(Line(name="a", x=(0.0, 1.0), y=(1.0, 2.0)),))
    text = inline(chart)
    tags = "".join(re.findall(r"<[^<>]+>", text))
    assert not re.search(r"(?<!, )#[0-9a-f]{6}", tags), "each stands behind its variable"
    assert "var(--series-0, #0f766e)" in tags
    assert ">#17202a<" in text
    assert with_variables("<a b='#dde1e5'>#dde1e5") == "<a b='var(--line, #dde1e5)'>#dde1e5"


def test_a_picture_alone_has_colours_and_no_variables() -> None:
    assert "var(" not in svg(lines((1.0, 2.0)))


def root_of(style: str) -> list[dict[str, str]]:
    """The variables of a stylesheet: light, dark."""
    return [
        dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]


def test_the_report_has_the_colours_and_the_type_of_the_services_page() -> None:
    ours = (files("fedlora_simulations.reports") / "report.css").read_text()
    theirs = (files("fedlora_serve.http.api") / "page" / "page.css").read_text()
    for mine, page in zip(root_of(ours), root_of(theirs), strict=True):
        shared = mine.keys() & page.keys()
        assert {"page", "card", "line", "text", "muted", "accent", "focus", "shadow"} <= shared
        assert {name: mine[name] for name in shared} == {name: page[name] for name in shared}
    [font] = re.findall(r"font: 0\.9375rem[^;]+;", theirs)
    assert font in ours
    icon = "icon.svg"
    theirs_icon = (files("fedlora_serve.http.api") / "page" / icon).read_bytes()
    assert (files("fedlora_simulations.reports") / icon).read_bytes() == theirs_icon


def luminance(colour: str) -> float:
    """WCAG 2.2, of a colour in hexadecimal."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("number", range(len(SERIES)))
def test_every_line_stands_out_from_its_card(number: int) -> None:
    style = root_of((files("fedlora_simulations.reports") / "report.css").read_text())
    for ink, sheet in zip(SERIES[number], style, strict=True):
        one, other = sorted((luminance(ink), luminance(sheet["card"])))
        assert (other + 0.05) / (one + 0.05) >= 3, f"{ink} on {sheet['card']}: WCAG asks 3 of graphics"


def test_long_names_are_told_apart_by_where_they_differ() -> None:
    chart = parts(3, "hospital of the long and winding road")
    [picture] = pictures(svg(chart, NARROW))
    assert {"…0", "…1", "…2"} <= set(texts(picture))
