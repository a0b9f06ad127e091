"""Runs to stop."""

from __future__ import annotations

import pytest

from tests.server.fake_grid import Player
from tests.server.run.stopped_runs import Runs


@pytest.fixture
def runs(play: Player) -> Runs:
    return Runs(play)
