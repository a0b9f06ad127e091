"""The README's first steps do what they say, on the command line and in Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def block(language: str) -> str:
    """The README's only block in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def run(command: list[str], folder: Path) -> str:
    """What a command prints in a folder. It must not fail."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the first steps need of a checkout."""
    for name in ("simulations", "README.md"):
        (tmp_path / name).symlink_to(PROJECT / name)
    return tmp_path


def test_the_first_steps_of_the_readme_run_as_they_stand(folder: Path) -> None:
    activation, *commands = block("sh").splitlines()
    assert activation == ". .venv/bin/activate"
    output = run(["bash", "-ec", "\n".join(commands)], folder)
    assert (folder / "runs" / "first" / "report.html").is_file()
    assert (folder / "mine" / "adapter_model.safetensors").is_file()
    base, tuned = output.split("def main(")[1:]
    assert base.strip()
    assert tuned.strip()
    assert base != tuned, "the adapter changed nothing"


def test_the_lines_of_python_in_the_readme_train_export_and_generate(folder: Path) -> None:
    output = run([sys.executable, "-c", block("python")], folder)
    assert (folder / "my-adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "my-model" / "decoder.onnx").is_file()
    assert output.startswith("def main(")
