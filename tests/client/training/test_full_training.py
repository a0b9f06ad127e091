"""Full fine-tuning of a checkpoint of any decoder family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fedlora.config.run import DataConfig, RunConfig, TrainConfig
from fedlora_client.data.windows import IGNORED
from fedlora_client.training.full_training import FullTraining
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.client.train_cases import TEXT
from tests.tiny.families import family_pack

each_kind = pytest.mark.parametrize("family", ["llama-biases", "qwen3", "phi3", "gemma2", "gemma3"])


def training_of(family: str, folder: Path, steps: int = 1) -> FullTraining:
    (folder / "text.txt").write_text((TEXT + "\n") * 20)
    base = str(family_pack(family).directory.with_name("pack-checkpoint"))
    train = TrainConfig(steps=steps, batch_size=4, sequence_length=16, lr=3e-3)
    return FullTraining(RunConfig(base=base, data=DataConfig(name="files"), train=train), folder / "text.txt")


@each_kind
def test_the_loss_before_a_step_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    training = training_of(family, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(training.directory, dtype=torch.float32, attn_implementation="eager")
    windows = training.held_out
    assert not windows.starts[windows.targets != IGNORED].any()  # an example to a window, so a window is an example
    with torch.no_grad():
        logits = model(windows.inputs).logits
    expected = F.cross_entropy(logits.flatten(0, 1), windows.targets.flatten(), ignore_index=IGNORED)
    assert training.evaluate() == pytest.approx(float(expected), rel=1e-5)


@each_kind
def test_what_is_written_without_a_step_is_what_was_read(family: str, tmp_path: Path) -> None:
    training = training_of(family, tmp_path)
    training.write(tmp_path / "out", replace=False)
    read, written = (load_file(folder / "model.safetensors") for folder in (training.directory, tmp_path / "out"))
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in read)


@each_kind
def test_a_few_steps_reduce_the_loss_and_move_every_weight(family: str, tmp_path: Path) -> None:
    training = training_of(family, tmp_path, steps=6)
    before = {name: weight.detach().clone() for name, weight in training.weights.items()}
    losses = training.train(lambda step, loss: None)
    assert losses[-1] < losses[0]
    assert not any(torch.equal(weight, before[name]) for name, weight in training.weights.items())
