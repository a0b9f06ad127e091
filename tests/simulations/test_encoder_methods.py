"""Every method and every robust rule takes the adapters of an encoder: short federated runs on labels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.heads import extra_shapes
from fedlora.base.pack import BasePack
from fedlora.config.leading import AggregationConfig
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, SimulationConfig, TrainConfig
from fedlora.peft.directory import read_peft
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations.simulation import simulate
from rich.console import Console

from tests.client.encoder.test_training import records, written
from tests.server.method_cases import METHODS, ROBUST
from tests.tiny.encoders import LABELS, save_encoder_pack

DEVICES = len(LABELS)
HEADS = ("classifier", "pooler")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    return save_encoder_pack("bert", tmp_path_factory.mktemp("encoder") / "pack")


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each device, each without one of the labels."""
    return folders(tmp_path_factory.mktemp("unlike"), LABELS)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each device, each with every label: a robust rule takes one that differs for a liar."""
    return folders(tmp_path_factory.mktemp("alike"), [None] * DEVICES)


def folders(place: Path, missing: Sequence[str | None]) -> Path:
    for device, label in enumerate(missing):
        left_out = () if label is None else (label, LABELS.index(label))
        own = [record for record in records(60, seed=device) if record["label"] not in left_out]
        (place / str(device)).mkdir()
        written(place / str(device) / "notes.jsonl", own)
    return place


def config_of(base: BasePack, data: Path, run: Path, method: str, aggregation: AggregationConfig) -> RunConfig:
    return RunConfig(
        base=str(base.directory), output=str(run), data=DataConfig(name="files", path=str(data)),
        lora=LoraSection(rank=4, alpha=8.0, modules_to_save=HEADS), server=ServerConfig(rounds=2, method=method),
        simulation=SimulationConfig(devices=DEVICES), aggregation=aggregation,
        train=TrainConfig(steps=6, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu"),
    )  # fmt: skip


def check_run(base: BasePack, data: Path, run: Path, method: str, aggregation: AggregationConfig) -> None:
    """The mean held-out loss falls, and what is published has every linear module and the head, which trained."""
    done = simulate(config_of(base, data, run, method, aggregation), "in-process", 1, Console(quiet=True))
    losses = [sum(record["loss"].values()) / len(record["loss"]) for record in read_metrics(done)]
    assert losses[-1] < 0.95 * losses[0]
    adapter = read_peft(done / "rounds" / "0002" / "adapter").adapter
    assert adapter.pairs.keys() == base.model.linear_modules().keys()
    assert adapter.extras.keys() == extra_shapes(HEADS, base.model).keys()
    assert not any(np.array_equal(array, base.floats(name)) for name, array in adapter.extras.items())


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_learned_by_every_method(base: BasePack, unlike: Path, tmp_path: Path, method: str) -> None:
    check_run(base, unlike, tmp_path / "run", method, AggregationConfig())


@pytest.mark.parametrize("rule", ROBUST)
def test_labels_are_learned_under_every_robust_rule(base: BasePack, alike: Path, tmp_path: Path, rule: str) -> None:
    check_run(base, alike, tmp_path / "run", "svd", AggregationConfig(robust=rule, weights="uniform"))


@pytest.mark.parametrize(("method", "optimizer"), [("svd", "fedavgm"), ("ffa", "fedadam")])
def test_a_run_with_a_head_that_was_stopped_goes_on_to_the_same_bits(
    base: BasePack, unlike: Path, tmp_path: Path, method: str, optimizer: str
) -> None:
    """As a server leaves it that is killed while it trains round 2: the first is committed, the second is not there."""
    config = config_of(base, unlike, tmp_path / "run", method, AggregationConfig(optimizer=optimizer, lr=0.1))
    whole = simulate(config, "in-process", 1, Console(quiet=True))
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "rounds" / "0002")
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[:2]))
    resumed = replace(config, output=str(again), server=replace(config.server, resume=True))
    simulate(resumed, "in-process", 2, Console(quiet=True))
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "moments.safetensors"):
        place = Path("rounds", "0002", file)
        assert (again / place).read_bytes() == (whole / place).read_bytes()


def test_commits_of_asynchronous_rounds_have_a_head_that_learns(base: BasePack, alike: Path, tmp_path: Path) -> None:
    config = config_of(base, alike, tmp_path / "run", "svd", AggregationConfig())
    server = replace(config.server, mode="async", buffer_size=2, rounds=3)
    done = simulate(replace(config, server=server), "in-process", 1, Console(quiet=True))
    heads = [read_peft(done / "rounds" / f"{n:04d}" / "adapter").adapter.extras["classifier.weight"] for n in (1, 2, 3)]
    assert not np.array_equal(heads[1], heads[0])
    losses = [sum(record["loss"].values()) / len(record["loss"]) for record in read_metrics(done)]
    assert losses[-1] < losses[0]
