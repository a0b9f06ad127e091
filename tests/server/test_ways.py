"""How long messages were under way, by two clocks."""

from __future__ import annotations

import pytest
from fedlora_server.ways import ways_s


def test_the_ways_and_the_work_are_all_of_the_time() -> None:
    ways = ways_s(100.0, 107.0, 108.5, 4.0)
    assert ways == {"download_s": pytest.approx(3.0), "upload_s": pytest.approx(1.5)}
    assert sum(ways.values()) + 4.0 == pytest.approx(8.5)


@pytest.mark.parametrize("answered_at", [103.0, 109.0])  # before the work could be done; after the answer is here
def test_a_clock_that_is_off_tells_nothing(answered_at: float) -> None:
    assert ways_s(100.0, answered_at, 108.5, 4.0) == {}


def test_without_the_time_of_the_work_there_is_no_way_to_tell() -> None:
    assert ways_s(100.0, 107.0, 108.5, None) == {}
