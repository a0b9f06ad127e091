"""Documents do what they say: their blocks, run as they stand, and what several of them begin with, made once for all."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
# The commands that are installed beside this Python come first.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
_TRAINING = "fedlora train README.md -o {} --steps 20"


def blocks(document: str, language: str) -> list[str]:
    """The blocks of code of a document, one after another."""
    text = (PROJECT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def write_beginning(path: Path, of: str = "README.md") -> None:
    """Enough of a text that the documents train on: a tenth of it is measured before and after each training."""
    path.write_text((PROJECT / of).read_text(encoding="utf-8")[:5000], encoding="utf-8")


def run(command: list[str], folder: Path) -> str:
    """What a command prints in a folder. It must not fail."""
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_shell(commands: str, folder: Path, factory: pytest.TempPathFactory) -> str:
    """What a block of commands prints in a folder where README.md lies.

    Several documents train on it by the same command: the first that does leaves the adapter to the others.
    """
    command, name = _trains_on_the_readme(commands)
    made = _made_once(factory, "trained-on-readme", _train)
    return run(["bash", "-ec", commands.replace(command, f"mkdir -p {name} && cp '{made}'/* {name}")], folder)


def _trains_on_the_readme(commands: str) -> tuple[str, str]:
    """(the one command that does, the name of what it makes)"""
    (found,) = re.finditer(re.escape(_TRAINING).replace(r"\{\}", r"(\S+)"), commands)
    return found[0], found[1]


def _train(folder: Path) -> Path:
    write_beginning(folder / "README.md")
    run(_TRAINING.format("mine").split(), folder)
    return folder / "mine"


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """What `make` makes in a folder, once for all processes among which the tests are dealt out."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    made = folder / "made"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_symlink():
            made.symlink_to(make(factory.mktemp(name)))
    return made.resolve()
