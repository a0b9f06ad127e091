"""A federated run that teaches an encoder labels which no device has all of."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, SimulationConfig, TrainConfig
from fedlora.data.examples import Labelled
from fedlora.peft.directory import read_peft
from fedlora_client.data.device_data import device_data
from fedlora_client.device import Device
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations.simulation import rounds_table, simulate
from rich.console import Console

from tests.client.encoder.test_training import records, written
from tests.tiny.encoders import LABELS, save_encoder_pack

SCORES = ("accuracy", "macro_f1", "mcc")


def test_labels_are_learned_in_a_simulation(tmp_path: Path) -> None:
    base = save_encoder_pack("bert", tmp_path / "pack")
    for device, missing in enumerate(LABELS):
        folder = tmp_path / "data" / str(device)
        folder.mkdir(parents=True)
        own = [one for one in records(60, seed=device) if one["label"] not in (missing, LABELS.index(missing))]
        written(folder / "notes.jsonl", own)
    config = RunConfig(
        base=str(base.directory), output=str(tmp_path / "run"), data=DataConfig(name="files", path=str(tmp_path / "data")),
        lora=LoraSection(rank=4, alpha=8.0), server=ServerConfig(rounds=3), simulation=SimulationConfig(devices=3),
        train=TrainConfig(steps=10, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu"),
    )  # fmt: skip
    run = simulate(config, "in-process", 1, Console(quiet=True))
    losses = [sum(record["loss"].values()) / len(record["loss"]) for record in read_metrics(run)]
    assert losses[-1] < 0.5 * losses[0]
    adapter = read_peft(run / "rounds" / "0003" / "adapter").adapter
    assert len(adapter.pairs) == 12


def test_a_data_set_is_dealt_out_and_its_test_set_is_measured_by_all(tmp_path: Path) -> None:
    base = save_encoder_pack("bert", tmp_path / "pack")
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", records(120))
    written(tmp_path / "data" / "test.jsonl", records(50, seed=9))
    config = RunConfig(
        base=str(base.directory), output=str(tmp_path / "run"),
        data=DataConfig(
            name="files", path=str(tmp_path / "data"), partition=PartitionConfig(rule="dirichlet", alpha=1.0, least=20)
        ),
        lora=LoraSection(rank=4, alpha=8.0), server=ServerConfig(rounds=2), simulation=SimulationConfig(devices=3),
        train=TrainConfig(steps=10, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu"),
    )  # fmt: skip
    run = simulate(config, "in-process", 1, Console(quiet=True))
    base_record, *_, last = read_metrics(run)
    assert (last["test"]["tokens"], last["test"]["devices"]) == (50, 3)
    assert last["test"]["accuracy"] > max(0.6, base_record["test"]["accuracy"])
    assert last["accuracy"].keys() == last["loss"].keys() == {"0", "1", "2"}
    weights = last["held_out_examples"]
    pooled = sum(last["accuracy"][name] * weights[name] for name in weights) / sum(weights.values())
    assert last["scores"]["accuracy"] == pytest.approx(pooled)

    # The same by one device that has all of the test set.
    adapter = read_peft(run / "rounds" / "0002" / "adapter").adapter
    whole = replace(config, data=DataConfig(name="files"))
    device = Device(whole, {"data-path": str(tmp_path / "data" / "test.jsonl")})
    measured = [device.measure(part, adapter) for part in ("train", "held_out")]
    texts = sum(one.tokens for one in measured)
    assert sum(one.loss * one.tokens for one in measured) / texts == pytest.approx(last["test"]["loss"], rel=1e-5)
    labels = [one.labels for one in measured if one.labels]
    assert (labels[0] + labels[1]).scores() == pytest.approx({name: last["test"][name] for name in SCORES})

    page = (run / "report.html").read_text()
    assert "Accuracy" in page
    assert "Who has what" in page
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rounds_table(run))
    told = console.export_text()
    assert "right of" in told
    assert f"{last['test']['accuracy']:.1%}" in told
    assert "…" not in told  # all of it fits into a terminal of 80 columns


def held_out_config(tmp_path: Path, output: str, **server: Any) -> RunConfig:
    base = save_encoder_pack("bert", tmp_path / f"{output}-pack")
    (tmp_path / "data").mkdir(exist_ok=True)
    written(tmp_path / "data" / "train.jsonl", records(120))
    written(tmp_path / "data" / "test.jsonl", records(20, seed=9))
    partition = PartitionConfig(rule="iid", held_out=2)
    return RunConfig(
        base=str(base.directory), output=str(tmp_path / output),
        data=DataConfig(name="files", path=str(tmp_path / "data"), partition=partition),
        lora=LoraSection(rank=4, alpha=8.0), server=ServerConfig(rounds=2, **server),
        simulation=SimulationConfig(devices=5),
        train=TrainConfig(steps=8, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu"),
    )  # fmt: skip


def test_clients_who_never_train_are_measured_apart_and_change_nothing(tmp_path: Path) -> None:
    config = held_out_config(tmp_path, "run")
    never = {str(number) for number in config.data.partition.never_training(5)}
    run = simulate(config, "in-process", 1, Console(quiet=True))
    for record in read_metrics(run):
        assert record["never_trained_loss"].keys() == never
        assert record["loss"].keys() == record["accuracy"].keys() == set("01234") - never
        assert record["excluded"] == {}
        assert record["measured_of"] == 3
        assert record["devices"] == (3 if record["round"] else 0)
        assert record["test"]["devices"] == 5
        assert {record["held_out_examples"][name] for name in never} == {24}  # all that they have
    last = read_metrics(run)[-1]
    told, losses = last["never_trained"], last["never_trained_loss"]
    assert told["mean"] == pytest.approx(sum(losses.values()) / 2)
    assert told["measured"] == 2
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rounds_table(run))
    assert "2 clients who never trained: loss" in console.export_text()
    page = (run / "report.html").read_text()
    assert "clients who never trained: loss" in page
    assert "clients who never trained: accuracy" in page

    # By a device that has just what they have.
    adapter = read_peft(run / "rounds" / "0002" / "adapter").adapter
    texts: list[Labelled] = []
    for number in sorted(never):
        data = device_data(config.data, (("num-partitions", 5), ("partition-id", int(number))))
        assert (data.train, data.never_trains) == ((), True)
        texts += [one for one in data.held_out if isinstance(one, Labelled)]
    written(tmp_path / "never.jsonl", [{"text": one.text, "label": one.label} for one in texts])
    device = Device(replace(config, data=DataConfig(name="files")), {"data-path": str(tmp_path / "never.jsonl")})
    counts = [one.labels for part in ("train", "held_out") if (one := device.measure(part, adapter)).labels]
    assert sum(counts[1:], counts[0]).scores() == pytest.approx({name: told[name] for name in SCORES})


def test_they_are_known_again_where_a_run_goes_on(tmp_path: Path) -> None:
    config = held_out_config(tmp_path, "run")
    first = simulate(replace(config, server=replace(config.server, rounds=1)), "in-process", 1, Console(quiet=True))
    going_on = replace(config, output=str(first), server=replace(config.server, resume=True))
    went_on = read_metrics(simulate(going_on, "in-process", 1, Console(quiet=True)))
    whole = read_metrics(
        simulate(replace(config, output=str(tmp_path / "whole")), "in-process", 1, Console(quiet=True))
    )
    for name in ("loss", "never_trained_loss", "excluded", "devices"):
        assert went_on[2][name] == whole[2][name]


def test_they_are_not_asked_in_rounds_that_do_not_wait_either(tmp_path: Path) -> None:
    config = held_out_config(tmp_path, "run", mode="async", buffer_size=2)
    records_ = read_metrics(simulate(config, "in-process", 1, Console(quiet=True)))
    never = {str(number) for number in config.data.partition.never_training(5)}
    for record in records_:
        assert record["excluded"] == {}
        assert record["train_loss"].keys().isdisjoint(never)
    assert records_[-1]["never_trained_loss"].keys() == never
    assert records_[-1]["scores"]
