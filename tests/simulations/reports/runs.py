"""Directories of runs as a server leaves them, written by hand: numbers that a test knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlora.config.run import RunConfig


def record(number: int, devices: Mapping[str, float], **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    trained = {"devices": len(devices), "replies": len(devices), "aggregation_error": 0.25} if number else {}
    empty = {"devices": 0, "replies": 0, "aggregation_error": None}
    common = {"round": number, "excluded": {}, "bytes_down": 2_000_000, "bytes_up": 1_000_000, "train_loss": {}}
    return common | empty | trained | {"loss": dict(devices), "server_s": 0.5, "seconds": 1.5} | changes


def write_run(
    folder: Path, records: Sequence[Mapping[str, Any]], *, base: str = "a" * 64, unit: str = "token", **keys: Any
) -> Path:
    """A run with these rounds; `keys` of its configuration have __ for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds = max((line["round"] for line in records), default=1)
    values = {"name": "kitchen", "server.rounds": max(1, rounds)} | {k.replace("__", "."): v for k, v in keys.items()}
    config = RunConfig().flat() | values
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    about = {"run": "1", "base_fingerprint": base, "loss_unit": unit}
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records), encoding="utf-8")
    return folder


def losses(*means: float, spread: float = 0.5) -> list[dict[str, Any]]:
    """Rounds of three devices with these means."""
    return [
        record(number, {"ann": mean - spread, "bob": mean, "eve": mean + spread})
        for number, mean in enumerate(means)
    ]  # fmt: skip
