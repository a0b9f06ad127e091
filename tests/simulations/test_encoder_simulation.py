"""A federated run that teaches an encoder labels which no device has all of."""

from __future__ import annotations

from pathlib import Path

from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, SimulationConfig, TrainConfig
from fedlora.peft.directory import read_peft
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations.simulation import simulate
from rich.console import Console

from tests.client.encoder.test_training import records, written
from tests.tiny.encoders import LABELS, save_encoder_pack


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
