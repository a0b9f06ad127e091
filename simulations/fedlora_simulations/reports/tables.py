"""A table as data: what the page, LaTeX and CSV show of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.errors import printable

DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What stands in one place."""

    text: str
    is_number: bool = True
    is_best: bool = False  # of its column, among the methods
    value: float | None = None  # in full, for a CSV
    spread: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells below headings; the first column names the row."""

    name: str  # of its file
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    columns: tuple[bool, ...]  # whether each is of numbers
    note: str = ""


def name_cell(text: object) -> Cell:
    """What a stranger may have written, in one line."""
    return Cell(text=printable(str(text)), is_number=False)


def number_cell(text: str, value: float | None = None, *, is_best: bool = False) -> Cell:
    return Cell(text=text, value=value, is_best=is_best)


def absent(word: str = "") -> Cell:
    """A dash, with a word where it is not plain why."""
    return Cell(text=f"{DASH} {word}".strip())


def table(
    name: str,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    note: str = "",
    *,
    columns: Sequence[bool] = (),
) -> Table:
    """Numbers in all columns but the first, unless `columns` says which have them."""
    kinds = columns or [False, *([True] * (len(headings) - 1))]
    shown = tuple(printable(heading) for heading in headings)
    return Table(name=name, title=title, headings=shown, rows=tuple(map(tuple, rows)), columns=tuple(kinds), note=note)
