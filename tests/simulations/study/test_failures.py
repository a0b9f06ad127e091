"""A study whose runs failed says so, and is no success where all did."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fedlora.cli import main
from fedlora_simulations.study import runs
from fedlora_simulations.study.definition import Run
from fedlora_simulations.study.results import Result

from tests.simulations.study.test_study import result, written

Ended = tuple[int, str, str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, ("seeds = [1, 2]", "seeds = [1]"), ("[0.01, 0.001, 0.1]", "[0.01]"))


def study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    monkeypatch.setattr(sys, "argv", ["fedlora", "study", *map(str, arguments), "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize("pooled", [False, True], ids=["every run", "every method"])
def test_a_study_without_a_number_of_any_method_is_no_success_and_says_what_failed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pooled: bool
) -> None:
    def measured(run: Run, workers: int) -> Result:
        if pooled and run.is_pooled:
            return result(run, 2.0)
        raise ValueError("no batteries")

    monkeypatch.setattr(runs, "measured", measured)
    output = tmp_path / "out"
    for more in ((), ("--table",)):
        code, out, error = study(monkeypatch, capsys, file, "-o", output, *more)
        assert (code, out) == (1, "")
        last = error.strip().splitlines()[-1]
        assert last.startswith(f"error: {output / 'results.jsonl'}: no method gave a number, so there is no table; ")
        assert "ValueError('no batteries') (fedavg, all, seed 1, lr 0.01; svd, all, seed 1, lr 0.01; momentum" in last
        assert not (output / "table.md").exists()


def test_runs_that_failed_beside_others_are_told_by_their_reasons(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(run: Run, workers: int) -> Result:
        if (run.row, run.setting) in (("svd", "half"), ("momentum", "half")):
            raise ValueError("no batteries")
        return result(run, 2.0)

    monkeypatch.setattr(runs, "measured", measured)
    code, out, error = study(monkeypatch, capsys, file, "-o", tmp_path / "out")
    assert code == 0
    assert out.endswith(f"{tmp_path / 'out' / 'table.md'}\n")
    assert (
        "warning: 2 runs failed: ValueError('no batteries') (svd, half, seed 1, lr 0.01; momentum, half, seed 1, lr 0.01)"
        in error
    )


def test_a_study_that_is_stopped_says_how_it_goes_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Run] = []

    def measured(run: Run, workers: int) -> Result:
        asked.append(run)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return result(run, 2.0)

    monkeypatch.setattr(runs, "measured", measured)
    output = tmp_path / "my out"
    code, _, error = study(monkeypatch, capsys, file, "-o", output)
    assert code == 1
    assert error.endswith(f"error: stopped; kept: 2 of 7 runs. To go on: fedlora study {file} -o '{output}'\n")
    monkeypatch.setattr(runs, "measured", lambda run, workers: result(run, 2.0))
    assert study(monkeypatch, capsys, file, "-o", output)[0] == 0
    assert len((output / "results.jsonl").read_text().splitlines()) == 7


def test_the_table_of_a_study_that_never_ran_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = study(monkeypatch, capsys, file, "-o", tmp_path / "out", "--table")
    assert (code, out) == (1, "")
    assert error == f"error: {tmp_path / 'out'} holds no result of {file}: leave --table out to run it\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lora.rank = 2", 'base = "nano-2"\nlora.rank = 2'), "nano-2: there is no such file or folder"),
        (("lora.rank = 2", 'lora.target_modules = ["q"]'), "the base has no q"),
        (
            ("server.devices_per_round = 2", "server.min_devices = 9"),
            "server.min_devices is 9, simulation.devices only 4",
        ),
    ],
)
def test_a_run_that_could_not_begin_ends_the_study_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: tuple[str, str],
    message: str,
) -> None:  # fmt: skip
    code, _, error = study(monkeypatch, capsys, written(tmp_path, change), "-o", tmp_path / "out")
    assert code == 1
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()
