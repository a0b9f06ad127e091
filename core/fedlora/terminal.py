"""Where a command writes to: what it says is shown as it stands, whoever wrote a part of it.

Rich reads brackets as its markup, and passes on whatever else a terminal obeys. Names of fields, files and devices come
from strangers: `[/b]` in one would end the command, and an escape sequence would write over its other lines.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from fedlora.errors import printable


class Terminal(Console):
    """A console without markup, on which a text is one line, and a cell of a table steers nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Of a table's cell, heading or caption, which may have several lines."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


def warning(sentence: str) -> Text:
    """The sentence as a warning."""
    return Text.assemble(("warning:", "yellow"), f" {printable(sentence)}")
