"""Tables that a terminal shows whole: no cell is folded or cut, and what has more columns than fit is several tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

MOST_NAME = 24  # characters of a row's name in one line
_BETWEEN = 2  # of two columns


def narrow_table(title: str = "", **options: Any) -> Table:
    """A table that takes no room but its cells', and two characters between them."""
    return Table(
        title=title or None, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
        padding=(0, 1, 0, 0), **options,
    )  # fmt: skip


def within(
    width: int, title: str, headings: Sequence[str], rows: Sequence[Sequence[str | Text]], kept: int = 1
) -> list[Table]:
    """The rows as tables of at most `width` characters, each with the first `kept` columns and some of the others.

    The words of a heading stand below one another where the column's cells are no wider.
    """
    sizes = [
        max([*(cell_len(word) for word in heading.split()), *(_size(row[place]) for row in rows), 1])
        for place, heading in enumerate(headings)
    ]
    sizes[0] = min(sizes[0], MOST_NAME)
    first = list(range(kept))
    blocks: list[list[int]] = []
    room = 0
    for place in range(kept, len(headings)):
        if not blocks or sizes[place] + _BETWEEN > room:
            blocks.append([])
            room = width - sum(sizes[number] + _BETWEEN for number in first)
        blocks[-1].append(place)
        room -= sizes[place] + _BETWEEN
    tables = []
    for number, block in enumerate(blocks or [[]]):
        table = narrow_table(title if not number else f"{title}, continued")
        for place in (*first, *block):
            table.add_column(
                _heading(headings[place], sizes[place]), justify="right" if place else "left", overflow="fold",
                min_width=sizes[place],
                max_width=MOST_NAME if not place else None,
            )  # fmt: skip
        for row in rows:
            table.add_row(*(row[place] for place in (*first, *block)))
        tables.append(table)
    return tables


def _heading(words: str, size: int) -> str:
    return words if cell_len(words) <= size else "\n".join(words.split())


def _size(cell: str | Text) -> int:
    text = cell.plain if isinstance(cell, Text) else cell
    return max(map(cell_len, text.split("\n")))
