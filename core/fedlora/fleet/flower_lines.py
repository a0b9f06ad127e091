"""The lines that Flower's processes write, as they are kept and told."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def without_colours(line: str) -> str:
    """The line without the sequences that colour it on a terminal."""
    return _COLOUR.sub("", line)
