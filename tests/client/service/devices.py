"""A device of the tests: its device.toml, and the questions of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fedlora.base.pack import BasePack
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.lora.config import LoraConfig
from fedlora.wire.update import Update, encode_update
from fedlora_client.courier.question import Kind, Question
from fedlora_client.service.config import DeviceConfig, read_device

from tests.tiny.adapters import random_adapter

LORA = LoraConfig(rank=2, alpha=8.0)


def run_config(base: BasePack, **train: Any) -> RunConfig:
    values: dict[str, Any] = {"steps": 2, "batch_size": 2, "sequence_length": 16, "compute": "float32"} | train
    return RunConfig(
        name="notes",
        base="a path on the server",
        data=DataConfig(name="stdlib"),
        lora=LoraSection(rank=2, alpha=8.0),
        train=TrainConfig(**values),
        server=ServerConfig(rounds=9),
    )


def make_device(folder: Path, base: BasePack, more: str = "", name: str = "kitchen", **data: str) -> DeviceConfig:
    """A device with a folder of records, whose toml ends with `more`."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": f"line {n}: the quick brown fox jumps over the lazy dog"}) for n in range(40)]
    (folder / "data" / "notes.jsonl").write_text("\n".join(lines))
    text = f"[device]\nname = {json.dumps(name)}\nbase = {json.dumps(str(base.directory))}\n\n[data]\n"
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in ({"source": "data"} | data).items())
    (folder / "device.toml").write_text(f"{text}\n{more}")
    return read_device(folder / "device.toml")


def question(
    base: BasePack, kind: Kind = "train", server_round: int = 3, seconds: float = 300.0, config: RunConfig | None = None,
    **update: Any,
) -> Question:  # fmt: skip
    circumstances: dict[str, Any] = {"run": "run-7", "server_round": server_round, "base_fingerprint": base.fingerprint}
    sent = Update(**({"adapter": random_adapter(base, LORA)} | circumstances | update))
    flat = (config or run_config(base)).flat()
    return Question(kind=kind, run_config=flat, run_id=7, seconds=seconds, data=encode_update(sent))


def later(asked: Question, **changes: Any) -> Question:
    return dataclasses.replace(asked, **changes)
