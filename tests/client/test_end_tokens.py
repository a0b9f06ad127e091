"""A base whose end was never trained: what a person is told before the first step."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.config.run import RunConfig
from fedlora_client.device import Device
from fedlora_client.end_tokens import count_alike, warn_once
from fedlora_client.local_training import LocalRun, LocalTraining

from tests.tiny.checkpoints import llama_config, random_weights, tiny_quantization, write_checkpoint

RECORDS = '{"prompt": "ab", "completion": "cd"}\n' * 12
TIED = {True: "model.embed_tokens.weight", False: "lm_head.weight"}


def packed(directory: Path, *, tied: bool, bits: int, trained: bool, noise: float = 0.0) -> BasePack:
    """A tiny Llama of which <unk>, </s> and three more tokens have one row of the head, unless they were trained."""
    config = llama_config(tie_word_embeddings=tied)
    weights = random_weights(config)
    if not trained:
        head, generator = weights[TIED[tied]], np.random.default_rng(0)
        for row in (0, 2, 50, 51, 52):
            head[row] = head[2] + np.float32(noise) * generator.normal(size=head.shape[1])
    source = write_checkpoint(directory / "source", config=config, weights=weights)
    make_pack(str(source), directory / "pack", tiny_quantization(embedding_bits=bits))
    return open_pack(directory / "pack")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_rows_that_are_one_are_counted_within_their_quantization(
    tmp_path: Path, tied: bool, bits: int, noise: float
) -> None:
    base = packed(tmp_path, tied=tied, bits=bits, trained=False, noise=noise)
    assert (count_alike(base, 2), count_alike(base, 3)) == (4, 0)


def training(base: BasePack, tmp_path: Path, **lora: object) -> LocalTraining:
    (tmp_path / "data.jsonl").write_text(RECORDS)
    config = RunConfig(base=str(base.directory))
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=2, **lora))  # type: ignore[arg-type]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, sequence_length=16, steps=1))
    return LocalTraining(LocalRun(data=tmp_path / "data.jsonl", output=tmp_path / "out", config=config))


def test_an_end_that_cannot_be_learned_is_told_with_the_remedy(tmp_path: Path) -> None:
    base = packed(tmp_path, tied=False, bits=8, trained=False)
    [told] = [line for line in training(base, tmp_path).warnings() if "learn to stop" in line]
    assert told.startswith("</s> (token 2) ends what is learned, and the base cannot tell it from 4 other tokens")
    assert "--set lora.modules_to_save=lm_head" in told
    quiet = training(base, tmp_path, modules_to_save=("lm_head",))
    assert not [line for line in quiet.warnings() if "learn to stop" in line]


def test_an_end_that_was_trained_is_no_matter(tmp_path: Path) -> None:
    base = packed(tmp_path, tied=False, bits=8, trained=True)
    assert not [line for line in training(base, tmp_path).warnings() if "learn to stop" in line]


def test_a_device_tells_it_once_and_not_in_every_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = packed(tmp_path, tied=True, bits=8, trained=False)
    (tmp_path / "data.jsonl").write_text(RECORDS)
    config = training(base, tmp_path).run.config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, name="files"))
    device = Device(config, {"data-path": str(tmp_path / "data.jsonl")})
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fedlora.client"):
        for server_round in (1, 2):
            device.train(device.first_adapter(), server_round)
    assert len([record for record in caplog.records if "learn to stop" in record.message]) == 1
