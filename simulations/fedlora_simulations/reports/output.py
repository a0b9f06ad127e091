"""A report written: a page, or a folder with the page, its pictures and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlora.files.atomic import whole_file, write_text

from fedlora_simulations.reports.charts import Chart
from fedlora_simulations.reports.comma_separated import chart_csv, table_csv
from fedlora_simulations.reports.contents import Report
from fedlora_simulations.reports.drawing import WIDE, pdf, svg
from fedlora_simulations.reports.latex import latex
from fedlora_simulations.reports.page import page

PAGE = "report.html"
FIGURES, TABLES = ("svg", "pdf", "csv"), ("latex", "csv")  # kinds of files
_ENDINGS = {"latex": "tex"}


def write_page(report: Report, path: Path) -> Path:
    """Write the page there."""
    write_text(path, page(report))
    return path


def write_folder(
    report: Report, folder: Path, *, figures: Sequence[str] = (), tables: Sequence[str] = ()
) -> list[Path]:
    """FOLDER/report.html; figures/NAME.svg, .pdf and .csv; tables/NAME.tex and .csv. Of a study, a folder per setting."""
    written = [write_page(report, folder / PAGE)]
    for section in report.sections:
        inside = Path(_as_folder(section.panel.title)) if len(report.sections) > 1 else Path()
        for chart in section.charts:
            written += [_figure(chart, folder / "figures" / inside / f"{chart.name}.{kind}", kind) for kind in figures]
        for table in section.all_tables:
            for kind in tables:
                path = folder / "tables" / inside / f"{table.name}.{_ENDINGS.get(kind, kind)}"
                write_text(path, latex(table) if kind == "latex" else table_csv(table))
                written.append(path)
    return written


def _figure(chart: Chart, path: Path, kind: str) -> Path:
    if kind == "pdf":
        with whole_file(path) as aside:
            aside.write_bytes(pdf(chart, WIDE))
    else:
        write_text(path, chart_csv(chart) if kind == "csv" else _document(svg(chart, WIDE)))
    return path


def _document(picture: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n{picture}\n'


def _as_folder(title: str) -> str:
    """The name of a setting as that of a folder: it may hold anything."""
    clean = "".join(c if c.isalnum() or c in "-_" else "-" for c in title).strip("-")
    return clean[:60] or "setting"
