"""What a test reads out of a page, an SVG or LaTeX: by parsers, not by looking for text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree

_WORDS = (
    "textbf", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl",
    "dots", "pm",
)  # fmt: skip
_VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}  # the latter close themselves in SVG


@dataclass
class Page(HTMLParser):
    """The tables of a page by their id, its headings, its elements with attributes, and what was left open."""

    text: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    headings: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    _name: str = ""
    _rows: list[list[str]] | None = None
    _cell: list[str] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag not in _VOID:
            self.open.append(tag)
        identity = values.get("id") or ""
        if identity.startswith("table-"):
            self._name = identity.removeprefix("table-")
        if tag == "table":
            self._rows = self.tables.setdefault(self._name, [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th", "h1", "h2", "h3", "li", "p"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        if self.open[-1] == "p" != tag:
            self.open.pop()
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if self._cell is None:
            return
        told = " ".join("".join(self._cell).split())
        if tag in ("td", "th") and self._rows:
            self._rows[-1].append(told)
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(told)
        if tag in ("td", "th", "h1", "h2", "h3"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def column(self, table: str, heading: str) -> dict[str, str]:
        """{name of the row: cell}"""
        first, *rows = self.tables[table]
        place = first.index(heading)
        return {row[0]: row[place] for row in rows}

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def pictures(page: str) -> list[ElementTree.Element]:
    """Every SVG of a page, as the well-formed XML that it must be."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in picture.iter() if each.tag.endswith("text")]


def tabular(text: str) -> list[list[str]]:
    """The cells of the only `tabular`, its form checked: booktabs' three rules, each row as many cells as columns."""
    [(columns, body)] = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    lines = body.splitlines()
    assert (lines[0], lines[2], lines[-1]) == (r"\toprule", r"\midrule", r"\bottomrule")
    rows = []
    for line in [lines[1], *lines[3:-1]]:
        assert line.endswith(r" \\"), line
        cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
        assert len(cells) == len(columns), line
        rows.append([_sound(cell.strip()) for cell in cells])
    return rows


def _sound(cell: str) -> str:
    """A cell in which nothing is left that TeX would take for a command of its own."""
    bare = re.sub(rf"\\({'|'.join(_WORDS)})\b|\\[{{}}$&#%_]", "", cell)
    assert "\\" not in bare, cell
    assert bare.count("{") == bare.count("}"), cell
    assert bare.count("$") % 2 == 0, cell
    assert not re.search(r"[&#%_~^]", bare), cell
    return cell
