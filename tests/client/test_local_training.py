"""Training on one's own files from Python, as a notebook does it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import DataConfig, LoraSection, RunConfig, TrainConfig
from fedlora.errors import DataError
from fedlora.peft.directory import read_peft
from fedlora_client import LocalRun, LocalTraining, Watcher, evaluate
from fedlora_client.reference import logits

from tests.reference.oracles import read_by_peft
from tests.tiny.tokens import random_tokens

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


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_began_from_the_weights_begins_at_the_base_and_is_in_peft_what_was_trained(
    base: BasePack, tmp_path: Path, init: str
) -> None:
    config = dataclasses.replace(
        config_of(base),
        lora=LoraSection(rank=2, alpha=4.0, init=init),
        train=dataclasses.replace(TRAIN, lr=1e-2, steps=4),
    )
    training = LocalTraining(LocalRun(data=notes(tmp_path), output=tmp_path / "adapter", config=config))
    result = training.train()
    model, windows = training.device.model, training.device.held_out_windows()
    assert result.evaluations[0][1] == pytest.approx(evaluate(model, None, windows)[0], rel=1e-4)
    assert result.evaluations[-1][1] < result.evaluations[0][1]
    assert {pair.rank for pair in read_peft(tmp_path / "adapter").adapter.pairs.values()} == {4}
    tokens = random_tokens(base, 2, 8)
    with torch.no_grad():
        theirs = read_by_peft(base, tmp_path / "adapter")(torch.from_numpy(tokens)).logits
    np.testing.assert_allclose(logits(base, tokens, result.adapter), theirs, rtol=1e-3, atol=1e-3)
    lora = model.lora(training.adapter, frozen=training.frozen)
    at_start = model.logits(torch.from_numpy(tokens), lora).numpy()
    np.testing.assert_allclose(at_start, logits(base, tokens, None), rtol=1e-3, atol=1e-3)
    assert np.abs(theirs.numpy() - at_start).max() > 1e-2
    alone = evaluate(model, result.adapter, windows)[0]
    assert alone == pytest.approx(min(loss for _, loss in result.evaluations), rel=1e-4)


def test_a_training_from_the_weights_that_was_stopped_goes_on_to_the_same_bits(base: BasePack, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config_of(base), lora=LoraSection(rank=2, init="pissa"), train=dataclasses.replace(TRAIN, steps=4)
    )
    data = notes(tmp_path)
    whole = LocalTraining(LocalRun(data=data, output=tmp_path / "whole", config=config)).train()

    def stop(step: int, loss: float) -> None:
        if step == 1:
            raise KeyboardInterrupt

    run = LocalRun(data=data, output=tmp_path / "stopped", config=config, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        LocalTraining(run).train(Watcher(on_step=stop))
    assert run.state_file.exists()
    again = LocalTraining(run).train()
    for module, pair in whole.adapter.pairs.items():
        np.testing.assert_array_equal(again.adapter.pairs[module].lora_A, pair.lora_A)
        np.testing.assert_array_equal(again.adapter.pairs[module].lora_B, pair.lora_B)
