"""Engines of each profile of rows, which end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedlora.exported.profiles import Profile
from fedlora_serve.batching.engine import BatchEngine

from tests.serve.speakers import ROW_PROFILES

Engines = Callable[..., BatchEngine]


@pytest.fixture(params=ROW_PROFILES)
def profile(request: pytest.FixtureRequest) -> Profile:
    value: Profile = request.param
    return value


@pytest.fixture
def engines(folders: dict[Profile, Path], profile: Profile) -> Iterator[Engines]:
    """Makes engines of one profile, which end with the test."""
    made: list[BatchEngine] = []

    def make(**options: int) -> BatchEngine:
        made.append(BatchEngine(folders[profile], threads=1, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close(0)
        assert not engine.is_alive
