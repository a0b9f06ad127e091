"""A source of adapters for each test."""

from __future__ import annotations

import pytest

from tests.serve.adapters.fake_source import FakeSource


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()
