"""Pages of reports whose pictures are drawn once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
from fedlora_simulations.reports import page
from fedlora_simulations.reports.charts import Chart
from fedlora_simulations.reports.drawing import NARROW, inline


@pytest.fixture(scope="session")
def once() -> Callable[..., str]:
    """`inline` that knows what it drew."""
    charts = dict[str, Chart]()

    @lru_cache(maxsize=1000)
    def drawn(chart: str, width: int, mark: str) -> str:
        return inline(charts[chart], width, mark)

    def each(chart: Chart, width: int = NARROW, mark: str = "") -> str:
        charts[repr(chart)] = chart
        return drawn(repr(chart), width, mark)

    return each


@pytest.fixture
def drawn_anew() -> None:
    """For tests of what is drawn twice."""


@pytest.fixture(autouse=True)
def each_picture_once(
    request: pytest.FixtureRequest, once: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page has eight pictures, each a fifth of a second, and most tests change something else of it."""
    if "drawn_anew" not in request.fixturenames:
        monkeypatch.setattr(page, "inline", once)
