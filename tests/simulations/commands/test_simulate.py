"""`fedlora simulate` from a scenario to a report, and what it says where it cannot."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import Result
from fedlora import read_peft
from fedlora.base.pack import BasePack
from fedlora.cli import main
from fedlora.config.run import RunConfig, read_scenario
from fedlora.errors import ConfigError, DataError, RunError
from fedlora_client import Device, TrainResult
from fedlora_server import rounds
from fedlora_server.exchange import ask
from fedlora_server.replies import Reply
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations import simulate
from fedlora_simulations.partition import read_partition
from fedlora_simulations.reports.environment import read_environment

from tests.server.method_cases import METHODS
from tests.simulations.reports.parsed import Page

if TYPE_CHECKING:
    from tests.simulations.conftest import Simulator

WEIGHTS = "adapter_model.safetensors"


def adapter_bytes(run: Path) -> dict[str, bytes]:
    """{round: the adapter's file}"""
    return {path.parts[-3]: path.read_bytes() for path in sorted(run.glob(f"rounds/*/adapter/{WEIGHTS}"))}


def test_a_run_leaves_its_configuration_its_metrics_its_adapters_and_its_report(tiny_run: tuple[Path, Result]) -> None:
    run, result = tiny_run
    assert result.exit_code == 0
    names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    files = ("adapter/adapter_config.json", f"adapter/{WEIGHTS}", "record.json", "round.json", "sealed.json")
    rounds = [f"rounds/000{n}/{file}" for n in (1, 2) for file in files]
    assert names == sorted(
        [
            "config.json",
            "environment.json",
            "head.json",
            "lock",
            "metrics.jsonl",
            "partition.json",
            "report.html",
            "run.json",
            *rounds,
        ]
    )


def test_a_run_prints_the_path_of_its_report_alone_on_standard_output(tiny_run: tuple[Path, Result]) -> None:
    run, result = tiny_run
    assert result.stdout == f"{run / 'report.html'}\n"


def test_the_configuration_of_a_run_is_every_key_that_it_ran_with(tiny_run: tuple[Path, Result]) -> None:
    run, _ = tiny_run
    values = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert values.keys() == RunConfig().flat().keys()
    config = RunConfig.from_flat(values, "config.json")
    assert (config.name, config.train.steps, config.data.max_bytes, config.output) == ("tiny", 2, 4000, str(run))


def test_the_configuration_of_a_run_tells_what_it_computed_with(tiny_run: tuple[Path, Result]) -> None:
    config = json.loads((tiny_run[0] / "config.json").read_text(encoding="utf-8"))
    assert config["train.compute"] in ("float32", "bfloat16")
    assert config["train.kernels"] in ("on", "off")
    assert config["train.device"] in ("cpu", "cuda")


def test_the_adapters_of_a_run_are_for_its_base_and_differ_from_round_to_round(
    tiny_run: tuple[Path, Result], base: BasePack
) -> None:
    run, _ = tiny_run
    adapters = []
    for number in ("0001", "0002"):
        content = read_peft(run / "rounds" / number / "adapter")
        assert content.base_fingerprint == base.fingerprint
        content.adapter.check_fits(base.shape.linear_modules(), number)
        content.adapter.check_finite(number)
        assert any(pair.lora_B.any() for pair in content.adapter.pairs.values()), "training moved B from zero"
        adapters.append(content.adapter)
    first, second = adapters
    assert any(not np.array_equal(first.pairs[m].lora_B, second.pairs[m].lora_B) for m in first.pairs)


def test_the_metrics_of_a_run_hold_every_device_in_every_round(tiny_run: tuple[Path, Result]) -> None:
    run, _ = tiny_run
    records = read_metrics(run)
    assert [record["round"] for record in records] == [0, 1, 2]
    assert [(record["devices"], record["replies"]) for record in records] == [(0, 0), (2, 2), (2, 2)]
    for record in records:
        assert record["loss"].keys() == {"dbm", "curses"}
        assert all(math.isfinite(loss) for loss in record["loss"].values())
        assert record["excluded"] == {}
    for record in records[1:]:
        assert record["train_loss"].keys() == {"dbm", "curses"}
        assert 0 <= record["aggregation_error"] < 1
        assert record["bytes_up"] > 0
    assert records[0]["loss"] != records[2]["loss"], "the adapter has an effect"


def test_the_report_of_a_run_shows_its_pictures_every_device_and_the_versions(tiny_run: tuple[Path, Result]) -> None:
    run, _ = tiny_run
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    expected = {"Held-out loss", "Devices from best to worst", "Aggregation error", "Bytes", "Seconds", "Who has what"}
    assert expected <= set(page.headings)
    assert set(page.column("all-devices", "base")) == {"dbm", "curses", "all"}
    assert page.column("versions", "version")["torch"] == torch.__version__
    assert "http://" not in text.replace("http://www.w3.org/", ""), "the report loads nothing"


@pytest.mark.parametrize(("method", "changes"), [*((method, []) for method in sorted(METHODS)), ("svd", ["base=nano"])])
def test_the_same_scenario_twice_gives_the_same_adapters_bit_for_bit(
    simulator: Simulator, method: str, changes: list[str]
) -> None:
    changes = [*changes, f"server.method={method}", "data.max_bytes=1500"]
    first, second = (simulator("-".join([*changes, str(time)]), *changes)[0] for time in (1, 2))
    assert list(adapter_bytes(first)) == ["0001", "0002"]
    assert adapter_bytes(first) == adapter_bytes(second)
    base, *_, last = read_metrics(first)
    assert last["replies"] == 2
    assert last["loss"] != base["loss"]
    assert set(last["loss"]) == set(base["loss"])


@pytest.mark.parametrize("method", ["svd", "stack", "hetlora", "raflora"])
def test_devices_of_several_ranks_train_together(simulator: Simulator, method: str) -> None:
    changes = ("simulation.ranks=1,4", "lora.rank=4", "aggregation.min_rank=1", f"server.method={method}")
    run, _ = simulator(f"ranks-{method}", *changes)
    assert [record["replies"] for record in read_metrics(run)] == [0, 2, 2]
    assert [record["excluded"] for record in read_metrics(run)] == [{}, {}, {}]


def test_another_seed_gives_another_adapter(simulator: Simulator, tiny_run: tuple[Path, Result]) -> None:
    run, _ = tiny_run
    other, _ = simulator("seed-2", "seed=2", "server.rounds=1")
    assert adapter_bytes(other)["0001"] != adapter_bytes(run)["0001"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"/1: no \*\.txt .*file below it"),
        ("", r"/1: no text in 1 file; give this device data"),
        ("one line that is not cut", r"device 1 has no held-out text"),
    ],
    ids=["no file", "an empty file", "nothing held out"],
)
def test_a_scenario_with_a_device_without_text_is_refused_before_it_starts(
    simulator: Simulator, tmp_path: Path, text: str | None, message: str
) -> None:
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        content = "".join(f"device {number} writes line {line}\n" for line in range(80)) if number != 1 else text
        if content is not None:
            (tmp_path / str(number) / "diary.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        simulator("empty-device", "data.name=files", f"data.path={tmp_path}", "simulation.devices=3")
    assert not (simulator.folder / "empty-device").exists()


def test_a_federation_does_not_train_the_head(simulator: Simulator) -> None:
    with pytest.raises(ConfigError, match=r"lora\.modules_to_save \(lm_head\) is for a device alone"):
        simulator("head", "lora.modules_to_save=lm_head")


def test_a_device_with_nothing_held_out_trains_where_nothing_is_measured(simulator: Simulator, tmp_path: Path) -> None:
    for number, text in enumerate(("".join(f"line {n} of many\n" for n in range(80)), "one line that is not cut")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "diary.txt").write_text(text, encoding="utf-8")
    changes = ("data.name=files", f"data.path={tmp_path}", "server.rounds=1", "server.evaluate=false")
    run, _ = simulator("nothing-held-out", *changes)
    assert read_metrics(run)[1]["replies"] == 2


def failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the standard error of the command line that a person types."""
    monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err


def test_a_configuration_is_simulated_from_python_as_by_the_command(
    simulator: Simulator, tiny_run: tuple[Path, Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(read_scenario(simulator.scenario), output=str(tmp_path / "run"))
    run = simulate(config)
    assert run == tmp_path / "run"
    assert capsys.readouterr().out == ""
    told = [[record["loss"].keys() for record in read_metrics(where)] for where in (str(run), tiny_run[0])]
    assert told[0] == told[1]
    assert (run / "report.html").is_file()


WRONG = {
    "an unknown key": ("server.metod=svd", "unknown key server.metod; did you mean server.method?"),
    "a value of another type": ("server.rounds=many", "server.rounds must be of type int"),
    "a value out of range": ("server.rounds=0", "server.rounds must be at least 1"),
    "a change without a value": ("server.rounds", "expected KEY=VALUE"),
    "an unknown method": ("server.method=svdd", "did you mean 'svd'?"),
    "an unknown robust rule": ("aggregation.robust=multikrum", "aggregation.robust must be one of auto, none, "),
    "an unknown data set": ("data.name=wikipedia", "no data set 'wikipedia'"),
    "a target that the base lacks": ("lora.target_modules=qkv_proj", "the base has no qkv_proj"),
    "a base that is missing": ("base=/nowhere", "/nowhere: there is no such file or folder"),
    "a sequence beyond the base's context": ("train.sequence_length=100000", "the base's context is"),
    "ranks below what the run takes": ("simulation.ranks=1", "simulation.ranks has 1, the run takes 2 and more"),
    "a rank that is none": ("simulation.ranks=1,x", "simulation.ranks must be integers from 1, got 'x'"),
    "a method that takes no optimizer": (
        "aggregation.optimizer=fedadam",
        "which svd does not take: it goes element by element",
    ),
    "a robust rule over numbers that devices tell": (
        "aggregation.robust=multi-krum",
        "set aggregation.weights to uniform",
    ),
    "fewer devices than the run needs": ("server.min_devices=3", "min_devices"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_one_line_says_what_is_wrong_and_no_directory_is_left_with(
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    message: str,
) -> None:
    output = tmp_path / "run"
    # A run that begins in spite of what is wrong is to fail soon.
    brief = ["--set", "server.round_timeout_s=0.1"] if change.startswith("server.min_devices") else []
    arguments = ["simulate", str(simulator.scenario), "-o", str(output), "--workers", "1", *brief, "--set", change]
    code, error = failed(monkeypatch, capsys, *arguments)
    assert code == 1
    lines = [line for line in error.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert message in lines[-1]
    assert not output.exists(), sorted(path.name for path in output.iterdir())
    assert len(lines) == 1


@pytest.mark.parametrize("late", [{"dbm"}, {"dbm", "curses"}], ids=["one of two", "all"])
def test_a_round_ends_in_time_with_what_arrived_whatever_a_device_still_does(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, late: set[str]
) -> None:
    train, go, blocked = Device.train, threading.Event(), []

    def slow(device: Device, *arguments: Any, **more: Any) -> TrainResult:
        if device.name in late:
            blocked.append(threading.current_thread())
            go.wait(600)
        return train(device, *arguments, **more)

    def over_after_those_in_time(*arguments: Any) -> Iterator[Reply]:
        """A round whose time is over when the replies of the others are there, however slow this machine is."""
        return islice(ask(*arguments), 2 - len(late))

    monkeypatch.setattr(Device, "train", slow)
    changes = ["server.rounds=1", "server.evaluate=false"]
    try:
        if late == {"dbm", "curses"}:
            with pytest.raises(RunError, match=r"0 of 2 devices gave a sound answer within 1\.5 s"):
                simulator("late-all", *changes, "server.round_timeout_s=1.5", workers=2)
        else:
            monkeypatch.setattr(rounds, "ask", over_after_those_in_time)
            run, result = simulator("late-one", *changes, workers=2)
            assert (result.exit_code, [r["replies"] for r in read_metrics(run)]) == (0, [0, 1])
            assert read_metrics(run)[1]["excluded"] == {"no-answer": 1}
        assert all(thread.is_alive() for thread in blocked), "nobody waited for them"
    finally:
        go.set()
        for thread in blocked:
            thread.join(60)


def test_a_scenario_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "absent.toml", tmp_path / "run"
    code, error = failed(monkeypatch, capsys, "simulate", str(path), "-o", str(output))
    assert (code, error) == (1, f"error: {path}: cannot be read: No such file or directory\n")
    assert not output.exists()


def test_a_scenario_that_is_not_toml_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    code, error = failed(monkeypatch, capsys, "simulate", str(path))
    assert code == 1
    assert error.startswith(f"error: {path}: not TOML: ")


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(
    simulator: Simulator,
    tiny_run: tuple[Path, Result],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = tiny_run
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, error = failed(monkeypatch, capsys, "simulate", str(simulator.scenario), "-o", str(run))
    assert code == 1
    assert f"error: {run} holds a run already; name another output" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_is_stopped_has_its_partition_and_what_it_was_computed_with(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: RunConfig, **_: object) -> None:
        Path(config.output, "config.json").write_text("{}")  # the server has begun it
        raise KeyboardInterrupt

    monkeypatch.setattr("fedlora_simulations.simulation.run_in_process", stopped)
    with pytest.raises(RunError, match="stopped"):
        simulator("stopped-at-once")
    run = simulator.folder / "stopped-at-once"
    partition = read_partition(run)
    assert partition is not None and len(partition.devices) == 2
    assert read_environment(run)["torch"] == torch.__version__
