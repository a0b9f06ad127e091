"""docs/export.md does what it says: its commands run, and its examples write what `fedlora generate` writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.documents import blocks, run, run_shell, write_beginning

PYTHON = blocks("docs/export.md", "python")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(a folder with what the commands make, what the last of them wrote)"""
    folder = tmp_path_factory.mktemp("docs")
    write_beginning(folder / "README.md")
    (commands,) = blocks("docs/export.md", "sh")
    output = run_shell(commands, folder, tmp_path_factory)
    return folder, output[output.rindex("def main(") :].strip()


def test_the_example_in_plain_onnx_runtime_writes_what_generate_writes(made: tuple[Path, str]) -> None:
    folder, expected = made
    assert run([sys.executable, "-c", PYTHON[0]], folder).strip() == expected


def test_the_example_in_onnxruntime_genai_writes_what_generate_writes(made: tuple[Path, str]) -> None:
    pytest.importorskip("onnxruntime_genai", reason="not installed: pip install fedlora[dev]")
    folder, expected = made
    assert run([sys.executable, "-c", PYTHON[1]], folder).strip() == expected
