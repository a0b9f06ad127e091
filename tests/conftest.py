"""What the tests share: real models and adapters where they lie beside the project, small ones made here."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fedlora.base.pack import BasePack
    from fedlora.files.at_rest_key import WrappingKey

    from tests.tiny.llamas import Packs

# Tests run side by side with whatever else a machine does: one thread each is steady, and nothing here is large.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests import it before our packages do

# What is imported and collected stays: a collection of garbage that goes through all of it takes most of a second, and some
# tests ask for hundreds. None while tests are collected; after that only what came since is gone through.
gc.disable()

# Nothing loses its power here, and a disk takes milliseconds each time: what is synced, and when, has tests of its own.
os.fsync = lambda fd: None

# The same examples on every run, and no deadline: a busy machine fails no test.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, models and fixtures that lies beside a checkout, where it does."""
    if not _SHARED.is_dir():
        pytest.skip(f"{_SHARED} is not there: real data, models and fixtures are not part of the project")
    return _SHARED


@pytest.fixture(scope="session")
def packs() -> Packs:
    """The pack of a variant: for reading, it is shared."""
    from tests.tiny.llamas import llama_pack  # with torch, which not all tests need

    return llama_pack


@pytest.fixture(scope="session")
def base(packs: Packs) -> BasePack:
    """One tiny pack."""
    from tests.tiny.llamas import DEFAULT

    return packs(DEFAULT)


@pytest.fixture
def at_rest_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> WrappingKey:
    """What files are encrypted under in the test."""
    from fedlora.files import at_rest
    from fedlora.files.at_rest_key import VARIABLE, write_new_key

    path = tmp_path_factory.mktemp("key") / "at-rest.key"
    made = write_new_key(path)
    monkeypatch.setenv(VARIABLE, f"file:{path}")
    monkeypatch.setattr(at_rest, "_keys", {})
    return made


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What follows a document step by step takes longest, and goes first: no process is left alone with it at the end."""
    items.sort(key=lambda item: not item.path.name.startswith(("test_readme", "test_docs")))
