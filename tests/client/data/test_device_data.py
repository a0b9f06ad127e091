"""From a device's own files to its windows: every kind of example, and the base's own chat template."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.config.run import DataConfig, RunConfig, TrainConfig
from fedlora.errors import DataError
from fedlora_client.device import Device

from tests.tiny.adapters import random_adapter
from tests.tiny.llamas import DEFAULT, save_checkpoint
from tests.tiny.tokenizer import EOS

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}[assistant]{% endif %}"
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of a model that has a chat template."""
    folder = tmp_path_factory.mktemp("chat-base")
    save_checkpoint(DEFAULT, folder / "checkpoint")
    (folder / "checkpoint" / "chat_template.jinja").write_text(TEMPLATE + PROMPT)
    (folder / "checkpoint" / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    make_pack(str(folder / "checkpoint"), folder / "pack", Quantization(bits=4, block_size=32))
    return folder / "pack"


def device(base: Path, place: Path, max_bytes: int = 0) -> Device:
    config = RunConfig(
        base=str(base),
        data=DataConfig(name="files", max_bytes=max_bytes),
        train=TrainConfig(steps=2, batch_size=2, sequence_length=64),
    )
    return Device(config, {"data-path": str(place)})


def write(place: Path, *records: object) -> None:
    place.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_device_learns_what_the_bases_own_template_gives_the_assistant(chat_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "chats.jsonl", CHAT, CHAT)
    windows = device(chat_base, tmp_path / "chats.jsonl").train_windows()
    assert (windows.examples, windows.truncated, windows.skipped) == (1, 0, 0)
    assert windows.learned_tokens == len("Good day.") + 1
    assert EOS in windows.targets[0].tolist()


def test_a_device_of_mixed_files_trains_on_all_of_them(chat_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", CHAT, {"text": "a document"}, {"prompt": "2 + 2 =", "completion": " 4"}, CHAT)
    (tmp_path / "b.txt").write_text("line\n" * 20)
    mixed = device(chat_base, tmp_path)
    windows = mixed.train_windows()
    assert windows.examples == 4
    assert windows.learned_tokens == len("Good day.") + 1 + len("a document") + 1 + len(" 4") + 1 + len("line\n" * 18)
    adapter = random_adapter(mixed.model.base)
    result = mixed.train(adapter, 1)
    assert len(result.losses) == 2
    _, tokens = mixed.evaluate(adapter)
    assert tokens == len("Good day.") + 1 + len("line\n" * 2)


def test_a_device_with_chats_on_a_base_without_a_template_is_told_what_to_do(base: BasePack, tmp_path: Path) -> None:
    write(tmp_path / "chats.jsonl", CHAT, CHAT)
    message = "device chats: training text: example 1: it has messages, and the base has no chat template; give prompt"
    with pytest.raises(DataError, match=message):
        device(base.directory, tmp_path / "chats.jsonl").train_windows()


def test_a_limit_in_bytes_keeps_whole_records(base: BasePack, tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", *({"text": f"record {number}"} for number in range(10)))
    whole = device(base.directory, tmp_path / "data.jsonl")
    limited = device(base.directory, tmp_path / "data.jsonl", max_bytes=20)
    assert limited.data == dataclasses.replace(whole.data, train=whole.data.train[:2])
    assert limited.train_windows().examples == 2
