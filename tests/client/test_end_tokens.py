"""A base whose end was never trained: what a person is told before the first step."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.config.run import RunConfig
from fedlora.data.adapter_chat import adapter_chat_settings
from fedlora_client.answer_ends import answer_ends
from fedlora_client.data.encoding import IGNORED
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.device import Device
from fedlora_client.end_tokens import count_alike, warn_once
from fedlora_client.local_training import LocalRun, LocalTraining
from transformers import GenerationConfig

from tests.tiny.checkpoints import llama_config, llama_shape, random_weights, tiny_quantization, write_checkpoint
from tests.tiny.tokenizer_kinds import byte_level, write_tokenizer

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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained(directory: Path, records: str, *, eos: str = "</s>") -> Path:
    """An adapter for a base whose chat template ends answers with <|im_end|>, and whose texts end with `eos`."""
    source = write_checkpoint(directory / "source", config=llama_config(vocab_size=512, max_position_embeddings=128))
    write_tokenizer("bytes, no processor", source)
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "chat_template": CHATML}))
    make_pack(str(source), directory / "pack", tiny_quantization())
    (directory / "data.jsonl").write_text(records * 12)
    config = RunConfig(base=str(directory / "pack"))
    config = dataclasses.replace(
        config,
        lora=dataclasses.replace(config.lora, rank=2),
        train=dataclasses.replace(config.train, sequence_length=96, steps=1),
    )
    LocalTraining(LocalRun(data=directory / "data.jsonl", output=directory / "out", config=config)).train()
    return directory / "out"


CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b</s>"}]}\n'


def test_an_end_of_answers_that_is_none_of_the_bases_is_written_beside_the_adapter(tmp_path: Path) -> None:
    adapter = trained(tmp_path, CHAT)
    end = open_tokenizer(tmp_path / "pack").token_to_id("<|im_end|>")
    ends = adapter_chat_settings(adapter).eos_token_ids
    assert ends == (end, *open_pack(tmp_path / "pack").shape.eos_token_ids)
    assert GenerationConfig.from_pretrained(adapter).eos_token_id == list(ends)


@pytest.mark.parametrize(
    ("records", "eos"), [(RECORDS, "</s>"), (CHAT, "<|im_end|>"), ('{"text": "a<pad>b"}\n', "</s>")]
)
def test_where_the_base_knows_the_end_nothing_is_written(tmp_path: Path, records: str, eos: str) -> None:
    assert not (trained(tmp_path, records, eos=eos) / "generation_config.json").exists()


def test_answers_that_are_cut_and_rare_ends_are_no_ends() -> None:
    tokenizer, shape = byte_level(None), llama_shape(vocab_size=512)
    learned = [[7, 4, 9], [7, 4], [7, 8], [7, 8], *([[7, 4, 9, 9]] * 30), [3]]  # 4: <|im_end|>, 3: <pad>
    pairs = [row + [IGNORED] * (6 - len(row)) for row in learned]
    targets = torch.tensor(pairs)
    windows = Windows(torch.zeros_like(targets), targets, torch.zeros_like(targets))
    assert answer_ends(windows, shape, tokenizer) == (4,)
