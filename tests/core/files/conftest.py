"""Keys of files at rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fedlora.files.at_rest_key import VARIABLE, WrappingKey, write_new_key


@pytest.fixture
def key(at_rest_key: WrappingKey) -> WrappingKey:
    return at_rest_key


@pytest.fixture
def without_key(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Take the key away."""
    return lambda: monkeypatch.delenv(VARIABLE)


@pytest.fixture
def other_key(tmp_path: Path) -> WrappingKey:
    return write_new_key(tmp_path / "other.key")
