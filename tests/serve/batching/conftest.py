"""Generators of each profile of rows, which end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedlora.exported.profiles import Profile
from fedlora_serve.batching.generator import BatchGenerator

from tests.serve.speakers import ROW_PROFILES

Generators = Callable[..., BatchGenerator]


@pytest.fixture(params=ROW_PROFILES)
def profile(request: pytest.FixtureRequest) -> Profile:
    value: Profile = request.param
    return value


@pytest.fixture
def generators(folders: dict[Profile, Path], profile: Profile) -> Iterator[Generators]:
    """Makes generators of one profile, which end with the test."""
    made: list[BatchGenerator] = []

    def make(**options: int) -> BatchGenerator:
        made.append(BatchGenerator(folders[profile], threads=1, **options))
        return made[-1]

    yield make
    for generator in made:
        generator.close(0)
        assert not generator.is_alive
