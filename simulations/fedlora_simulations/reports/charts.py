"""The pictures of a report as data: what is drawn, what a legend has, and the rows of a CSV.

A picture has the `name` of its file, a `title`, and a `note`: what a reader has to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Row = Sequence[str | float | int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points from left to right, and bands around them: (low, high) of each point."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    bands: tuple[tuple[tuple[float, float], ...], ...] = ()  # the widest first
    number: int = 0  # of its colour and mark
    hollow: frozenset[float] = frozenset()  # the x of points that are marked as not like the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A point with what it may be, in a row of its own."""

    name: str
    mean: float
    low: float
    high: float
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Lines over rounds, or over something else."""

    name: str
    title: str
    note: str = ""
    x_label: str = "round"
    y_label: str
    lines: tuple[Line, ...]
    is_share: bool = False
    x_is_share: bool = False
    from_zero: bool = False
    levels: tuple[tuple[str, float], ...] = ()  # lines from side to side: what pooled training reaches

    @property
    def legend(self) -> Sequence[tuple[str, int]]:
        return [(line.name, line.number) for line in self.lines]

    @property
    def rows(self) -> Iterator[Row]:
        most = max((len(line.bands) for line in self.lines), default=0)
        ends = [f"{end}{place or ''}" for place in range(most) for end in ("low", "high")]
        yield ["line", self.x_label, self.y_label, *ends]
        for line in self.lines:
            for place, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                bands = [end for band in line.bands for end in band[place]]
                yield [line.name, x, y, *bands, *([None] * (len(ends) - len(bands)))]
        for name, level in self.levels:
            yield [name, None, level, *([None] * len(ends))]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """A row for each group: its number and what it may be; lines from top to bottom for what it is held against."""

    name: str
    title: str
    note: str = ""
    x_label: str
    bars: tuple[Bar, ...]
    levels: tuple[tuple[str, float], ...] = ()
    is_share: bool = False

    @property
    def legend(self) -> Sequence[tuple[str, int]]:
        return ()  # the rows have their names beside them

    @property
    def rows(self) -> Iterator[Row]:
        yield ["name", self.x_label, "low", "high"]
        for bar in self.bars:
            yield [bar.name, bar.mean, bar.low, bar.high]
        for name, level in self.levels:
            yield [name, level, None, None]


MOST_BARS = 120  # each is a shape for each kind, and takes milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StackChart:
    """A bar for each device, cut by what it has of each kind."""

    name: str
    title: str
    note: str = ""
    x_label: str
    kinds: tuple[str, ...]
    bars: tuple[tuple[str, tuple[int, ...]], ...]  # (device, its examples of each kind)
    has_others: bool = False  # the last kind is the rest
    one_kind: bool = field(default=False)  # there is nothing to tell apart

    @property
    def drawn(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """The bars of the picture, each of which is a shape of its own for each kind; `rows` has all."""
        return self.bars[:MOST_BARS]

    @property
    def legend(self) -> Sequence[tuple[str, int]]:
        if self.one_kind:
            return ()
        last = len(self.kinds) - 1
        return [(kind, -1 if self.has_others and place == last else place) for place, kind in enumerate(self.kinds)]

    @property
    def rows(self) -> Iterator[Row]:
        yield ["device", *self.kinds]
        for device, counts in self.bars:
            yield [device, *counts]


Chart = LineChart | BarChart | StackChart
