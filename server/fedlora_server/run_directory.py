"""What a run leaves on disk.

config.json            the configuration, every key
metrics.jsonl          one line per round; round 0 is the base
rounds/0001/adapter/   the adapter that round 1 committed, in PEFT's format; it appears whole or not at all
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.adapter import Adapter
from fedlora.atomic import write_text
from fedlora.errors import ConfigError
from fedlora.pack import BasePack
from fedlora.peft import PeftDirectory, write_peft
from fedlora.run_config import RunConfig

CONFIG, METRICS = "config.json", "metrics.jsonl"


def default_output(name: str, run: str) -> Path:
    """Where a run goes that names no output: $FEDLORA_HOME/runs, or ~/.fedlora/runs."""
    home = Path(os.environ.get("FEDLORA_HOME") or Path.home() / ".fedlora")
    return home / "runs" / f"{name}-{run}"


class RunDirectory:
    """A new run's directory."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        """Raises ConfigError where `path` holds a run already."""
        self.path = path
        if (path / CONFIG).exists():
            raise ConfigError(f"{path} holds a run already; name another output")
        write_text(path / CONFIG, json.dumps(config.flat(), indent=2) + "\n")

    def commit(self, server_round: int, adapter: Adapter, base: BasePack) -> Path:
        """Write the adapter of a round; return its directory."""
        directory = self.adapter_of(self.path, server_round)
        write_peft(directory, PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name=base.source)
        return directory

    @staticmethod
    def adapter_of(run: Path, server_round: int) -> Path:
        """Where a round's adapter lies in the directory of a run."""
        return run / "rounds" / f"{server_round:04d}" / "adapter"

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one round's line."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (path / METRICS).read_text(encoding="utf-8").splitlines()]
