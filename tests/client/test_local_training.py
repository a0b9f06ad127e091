"""Training on one's own files from Python, as a notebook does it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import DataConfig, RunConfig, TrainConfig
from fedlora.errors import DataError
from fedlora.peft.directory import read_peft
from fedlora_client import LocalRun, LocalTraining

TRAIN = TrainConfig(steps=2, batch_size=2, sequence_length=16, compute="float32", device="cpu")


def config_of(base: BasePack) -> RunConfig:
    return RunConfig(base=str(base.directory), train=TRAIN)


def notes(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("to be or not to be\n" * 20, encoding="utf-8")
    return folder / "notes.txt"


def test_an_adapter_is_trained_on_one_file_without_a_watcher(base: BasePack, tmp_path: Path) -> None:
    run = LocalRun(data=str(notes(tmp_path)), output=str(tmp_path / "adapter"), config=config_of(base))
    result = LocalTraining(run).train()
    assert len(result.losses) == TRAIN.steps
    written = read_peft(tmp_path / "adapter")
    assert written.base_fingerprint == base.fingerprint
    for module, pair in result.adapter.pairs.items():
        np.testing.assert_array_equal(written.adapter.pairs[module].lora_B, pair.lora_B)
    assert json.loads((tmp_path / "adapter" / "training.json").read_text())["losses"] == list(result.losses)
    assert not run.state_file.exists()


def test_paths_are_strings_or_paths_with_one_result(base: BasePack, tmp_path: Path) -> None:
    data, first, config = notes(tmp_path), tmp_path / "first", config_of(base)
    LocalTraining(LocalRun(data=data, output=first, config=config)).train()
    results = [
        LocalTraining(
            LocalRun(data=kind(data), output=kind(tmp_path / kind.__name__), config=config, start=kind(first))
        )
        .train()
        .losses
        for kind in (str, Path)
    ]
    assert results[0] == results[1]


def test_the_state_of_a_relative_output_lies_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert LocalRun(data="x", output="adapter").state_file == tmp_path / ".adapter.training"


def test_the_files_that_a_run_names_are_its_data_whatever_the_data_set_of_a_federation(
    base: BasePack, tmp_path: Path
) -> None:
    config = dataclasses.replace(config_of(base), data=DataConfig(name="stdlib"))
    data = notes(tmp_path)
    training = LocalTraining(LocalRun(data=data, output=tmp_path / "adapter", config=config))
    assert training.device.data.train == ("to be or not to be\n" * 18,)
    with pytest.raises(DataError, match=r"missing\.txt: cannot be read"):
        LocalTraining(LocalRun(data=tmp_path / "missing.txt", output=tmp_path / "adapter", config=config))
