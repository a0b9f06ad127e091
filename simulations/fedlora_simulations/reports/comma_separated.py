"""Rows as a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from fedlora.errors import printable

from fedlora_simulations.reports.charts import Chart
from fedlora_simulations.reports.tables import Table

_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet runs; a device's name may begin so


def chart_csv(chart: Chart) -> str:
    """The numbers behind a picture, in full."""
    return _written(chart.rows)


def table_csv(table: Table) -> str:
    """A table: each number in full, with its spread over the seeds in a column of its own where it has one."""
    spreads = [any(row[place].spread is not None for row in table.rows) for place in range(len(table.headings))]
    headings: list[str] = []
    for heading, has_spread in zip(table.headings, spreads, strict=True):
        headings += [heading, f"{heading}, sd"] if has_spread else [heading]
    rows: list[list[object]] = [list(headings)]
    for row in table.rows:
        cells: list[object] = []
        for cell, has_spread in zip(row, spreads, strict=True):
            cells.append(cell.text if cell.value is None else cell.value)
            cells += [cell.spread] if has_spread else []
        rows.append(cells)
    return _written(rows)


def _written(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([_safe(value) for value in row])
    return buffer.getvalue()


def _safe(value: object) -> object:
    """A text that a spreadsheet would take for a formula has an apostrophe before it; a number has none."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
