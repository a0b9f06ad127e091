"""docs/export.md does what it says: its commands run, and its examples write what `fedlora generate` writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def blocks(language: str) -> list[str]:
    text = (PROJECT / "docs" / "export.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(a folder with what the commands make, what the last of them wrote)"""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "README.md").symlink_to(PROJECT / "README.md")
    (commands,) = blocks("sh")
    output = run(["bash", "-ec", commands], folder)
    return folder, output[output.rindex("def main(") :].strip()


def test_the_example_in_plain_onnx_runtime_writes_what_generate_writes(made: tuple[Path, str]) -> None:
    folder, expected = made
    assert run([sys.executable, "-c", blocks("python")[0]], folder).strip() == expected


def test_the_example_in_onnxruntime_genai_writes_what_generate_writes(made: tuple[Path, str]) -> None:
    pytest.importorskip("onnxruntime_genai", reason="not installed: pip install fedlora[dev]")
    folder, expected = made
    assert run([sys.executable, "-c", blocks("python")[1]], folder).strip() == expected
