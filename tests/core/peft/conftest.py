"""Advice is followed to the letter: the command of a message is run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

_COMMAND = re.compile(r'python -c "([^"]*)"')


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Runs the `python -c "..."` of a message in a folder; in this process, for a new one would import torch anew."""

    def run(message: str, folder: Path) -> None:
        command = _COMMAND.search(message)
        assert command, message
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            exec(command[1], {})

    return run
