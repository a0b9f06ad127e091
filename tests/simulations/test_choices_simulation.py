"""A federated run over questions of multiple choice, whose accuracy is that of `fedlora evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, SimulationConfig, TrainConfig
from fedlora_client.device import Device
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations.simulation import simulate
from rich.console import Console

from tests.client.encoder.test_training import written

WORDS = ("red", "blue", "green")


def test_a_run_tells_the_accuracy_of_multiple_choice(base: BasePack, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, count in (("train", 60), ("test", 15)):
        questions = [
            {"prompt": f"{number} {WORDS[number % 3]}:", "choices": [WORDS[number % 3], "no"], "answer": 0}
            for number in range(count)
        ]
        written(tmp_path / "data" / f"{name}.jsonl", questions)
    config = RunConfig(
        base=str(base.directory), output=str(tmp_path / "run"),
        data=DataConfig(name="files", path=str(tmp_path / "data"), partition=PartitionConfig(rule="iid", held_out=1)),
        lora=LoraSection(rank=4, alpha=8.0), server=ServerConfig(rounds=1), simulation=SimulationConfig(devices=3),
        train=TrainConfig(steps=12, batch_size=8, sequence_length=32, lr=0.02, compute="float32", device="cpu"),
    )  # fmt: skip
    run = simulate(config, "in-process", 1, Console(quiet=True))
    first, last = read_metrics(run)
    assert last["test"].keys() == {"loss", "tokens", "devices", "accuracy", "acc_norm", "acc_bytes"}
    assert last["accuracy"].keys() == last["loss"].keys()
    assert last["scores"].keys() == {"accuracy", "acc_norm", "acc_bytes"} < last["never_trained"].keys()
    words = [str(base.directory), str(run), str(tmp_path / "data" / "test.jsonl"), "--json"]
    told = json.loads(CliRunner().invoke(commands, ["evaluate", *words], catch_exceptions=False).stdout)
    assert told["questions"] == 15
    assert told["acc"] == pytest.approx(last["test"]["accuracy"])
    assert told["acc_norm"] == pytest.approx(last["test"]["acc_norm"])
    assert (last["test"]["accuracy"], last["test"]["acc_norm"]) != (
        first["test"]["accuracy"],
        first["test"]["acc_norm"],
    )

    # In as little memory as can be, the same.
    frugal = RunConfig.from_flat({**config.flat(), "train.memory_mb": 4000}, "test")
    node = {"partition-id": 0, "num-partitions": 3}
    adapter = Device(config, node).first_adapter()
    assert (
        Device(frugal, node).measure("held_out", adapter).choices
        == Device(config, node).measure("held_out", adapter).choices
    )
