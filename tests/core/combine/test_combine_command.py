"""`fedlora combine` on the command line, and what `fedlora inspect` shows of its result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fedlora.cli import commands
from fedlora.errors import AdapterError, ConfigError
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape().linear_modules()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, [*arguments])


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Two adapters of one base."""
    written = [tmp_path / "law", tmp_path / "verse"]
    for seed, place in enumerate(written):
        content = PeftDirectory(adapter=adapter_on(LoraConfig(rank=4), MODULES, seed), base_fingerprint="c" * 64)
        write_peft(place, content)
    return [str(place) for place in written]


def test_what_was_made_is_told_and_shown_by_inspect(places: list[str], tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    result = run("combine", *places, "--weights", "1,-0.5", "--how", "dare_ties", "--density", "0.5", "-o", made)
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{made}\n"
    assert "dare-ties, density 0.5, majority sign by total, seed 0; 14 modules of rank 4; " in result.stderr
    shown = run("inspect", made).output
    assert "dare-ties, density 0.5, majority sign by total, seed 0" in shown
    line = next(line for line in shown.splitlines() if "made of" in line)
    assert line.split("made of")[1].strip().startswith("1 law (")
    assert "-0.5 verse (" in line


@pytest.mark.parametrize("how", ["svd", "ties-svd", "linear", "cat"])
def test_weights_that_leave_float32_are_refused_or_told_without_a_number(
    places: list[str], tmp_path: Path, how: str
) -> None:
    density = ["--density", "0.5"] if how == "ties-svd" else []
    made = tmp_path / "made"
    result = run("combine", *places, "--weights", "1e300,1", "--how", how, *density, "-o", str(made))
    assert isinstance(result.exception, AdapterError), result.exception
    assert not made.exists()
    if how == "linear":  # its factors hold the roots of the weights
        result = run("combine", *places, "--weights", "1e38,1e38", "--how", how, "-o", str(made))
        assert result.exit_code == 0, result.exception
        assert "away from it" not in result.stderr


def test_without_weights_it_is_the_mean(places: list[str], tmp_path: Path) -> None:
    result = run("combine", *places, "--how", "cat", "-o", str(tmp_path / "made"))
    assert result.exit_code == 0, result.exception
    parts = [read_peft(place).adapter for place in places]
    for module in MODULES:
        mean = sum(part.product(module).dense() for part in parts) / 2
        got = read_peft(tmp_path / "made").adapter.product(module).dense()
        np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-5)


def test_an_output_that_is_there_is_replaced_only_when_told(places: list[str], tmp_path: Path) -> None:
    arguments = ("combine", *places, "-o", str(tmp_path / "made"))
    assert run(*arguments).exit_code == 0
    refused = run(*arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "pass --force to replace it" in str(refused.exception)
    assert run(*arguments, "--force").exit_code == 0


def test_weights_that_are_no_numbers_are_refused(places: list[str], tmp_path: Path) -> None:
    refused = run("combine", *places, "--weights", "much,little", "-o", str(tmp_path / "made"))
    assert "--weights: expected numbers with commas between them, such as 0.7,0.3, got 'much,little'" in str(
        refused.exception
    )


def test_an_adapter_that_is_not_there_is_told_with_its_neighbour(places: list[str], tmp_path: Path) -> None:
    refused = run("combine", places[0], str(tmp_path / "vers"), "-o", str(tmp_path / "made"))
    assert str(refused.exception) == (
        f"{tmp_path / 'vers'}: there is no such file or folder; did you mean {tmp_path / 'verse'}?"
    )
