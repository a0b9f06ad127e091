"""Every method and every robust rule takes the adapters of an encoder: short federated runs on labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, SimulationConfig, TrainConfig
from fedlora.config.sections import AggregationConfig
from fedlora.peft.directory import read_peft
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations.simulation import simulate
from rich.console import Console

from tests.client.encoder.test_training import records, written
from tests.server.method_cases import METHODS, ROBUST
from tests.tiny.encoders import LABELS, save_encoder_pack

pytestmark = pytest.mark.usefixtures("no_report")
DEVICES = len(LABELS)


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


def check_run(base: BasePack, data: Path, run: Path, method: str, aggregation: AggregationConfig) -> None:
    """The mean held-out loss falls, and what is published has every linear module."""
    config = RunConfig(
        base=str(base.directory), output=str(run), data=DataConfig(name="files", path=str(data)),
        lora=LoraSection(rank=4, alpha=8.0), server=ServerConfig(rounds=2, method=method),
        simulation=SimulationConfig(devices=DEVICES), aggregation=aggregation,
        train=TrainConfig(steps=6, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu"),
    )  # fmt: skip
    done = simulate(config, "in-process", 1, Console(quiet=True))
    losses = [sum(record["loss"].values()) / len(record["loss"]) for record in read_metrics(done)]
    assert losses[-1] < 0.95 * losses[0]
    adapter = read_peft(done / "rounds" / "0002" / "adapter").adapter
    assert adapter.pairs.keys() == base.model.linear_modules().keys()


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_learned_by_every_method(base: BasePack, unlike: Path, tmp_path: Path, method: str) -> None:
    check_run(base, unlike, tmp_path / "run", method, AggregationConfig())


@pytest.mark.parametrize("rule", ROBUST)
def test_labels_are_learned_under_every_robust_rule(base: BasePack, alike: Path, tmp_path: Path, rule: str) -> None:
    check_run(base, alike, tmp_path / "run", "svd", AggregationConfig(robust=rule, weights="uniform"))
