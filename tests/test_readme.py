"""The README's first steps do what they say, on the command line and in Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.documents import PROJECT, blocks, run, run_shell, write_beginning

SCENARIO = Path("simulations", "scenarios", "demo.toml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the first steps need of a checkout; of the demo's eight devices, the first two."""
    write_beginning(tmp_path / "README.md")
    scenario = (PROJECT / SCENARIO).read_text(encoding="utf-8")
    assert scenario.count("\ndevices = 8\n") == 1
    (tmp_path / SCENARIO).parent.mkdir(parents=True)
    (tmp_path / SCENARIO).write_text(scenario.replace("\ndevices = 8\n", "\ndevices = 2\n"), encoding="utf-8")
    return tmp_path


def test_the_first_steps_of_the_readme_run_as_they_stand(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (commands,) = blocks("README.md", "sh")
    activation, steps = commands.split("\n", 1)
    assert activation == ". .venv/bin/activate"
    output = run_shell(steps, folder, tmp_path_factory)
    assert (folder / "runs" / "first" / "report.html").is_file()
    assert (folder / "mine" / "adapter_model.safetensors").is_file()
    base, tuned = output.split("def main(")[1:]
    assert base.strip()
    assert tuned.strip()
    assert base != tuned, "the adapter changed nothing"


def test_the_lines_of_python_in_the_readme_train_export_and_generate(folder: Path) -> None:
    (lines,) = blocks("README.md", "python")
    output = run([sys.executable, "-c", lines], folder)
    assert (folder / "my-adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "my-model" / "decoder.onnx").is_file()
    assert output.startswith("def main(")
