"""The colours and the type of a report: those of the service's page, light and dark.

A picture is drawn in the light ones. On the page each becomes the variable of its name in `report.css`, so that one picture
is right in both.
"""

from __future__ import annotations

import re

TEXT, MUTED, LINE, CARD = "#17202a", "#5b6773", "#dde1e5", "#ffffff"
# (light, dark) of what is told apart; neighbours differ in lightness too, for eyes that tell few colours.
SERIES = (
    ("#0f766e", "#2dd4bf"),
    ("#c2410c", "#fb923c"),
    ("#4338ca", "#a5b4fc"),
    ("#be185d", "#f472b6"),
    ("#a16207", "#facc15"),
    ("#0369a1", "#38bdf8"),
    ("#4d7c0f", "#a3e635"),
    ("#7e22ce", "#d8b4fe"),
    ("#b91c1c", "#fca5a5"),
    ("#155e75", "#67e8f9"),
    ("#78350f", "#d6a87c"),
    ("#334155", "#cbd5e1"),
)
OTHERS = "#9aa4ad"  # what has no colour of its own
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "d")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

_VARIABLES = {
    TEXT: "text", MUTED: "muted", LINE: "line", CARD: "card", OTHERS: "others",
    **{light: f"series-{number}" for number, (light, _) in enumerate(SERIES)},
}  # fmt: skip
_TAG = re.compile(r"<[^<>]+>")
_COLOUR = re.compile("|".join(map(re.escape, _VARIABLES)))


def colour(number: int) -> str:
    """The light colour of the line with this number; after the last they begin again."""
    return SERIES[number % len(SERIES)][0]


def marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def dashes(number: int) -> object:
    """Whole, then three kinds of broken lines: with the colours 48 lines that differ."""
    return DASHES[number // len(SERIES) % len(DASHES)]


def with_variables(svg: str) -> str:
    """The picture with `var(--line, #dde1e5)` in place of #dde1e5, in its tags alone: a text may be anything."""
    return _TAG.sub(lambda tag: _COLOUR.sub(lambda found: f"var(--{_VARIABLES[found[0]]}, {found[0]})", tag[0]), svg)


def variables(is_dark: bool) -> str:
    """What `report.css` has of the series."""
    return " ".join(f"--series-{number}: {pair[is_dark]};" for number, pair in enumerate(SERIES))
