"""Runs that a test stops wherever it likes, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.run import AggregationConfig

from tests.server.fake_grid import Device, Honest, Played, Player
from tests.server.records import records_of, without_records
from tests.tiny.checkpoints import tree

ROUNDS = 3
TIMES = ("seconds", "server_s", "costs")
PLAIN = AggregationConfig(max_rank=9)  # stack and fedex come to cut what they commit


class Stopped(Exception):  # noqa: N818
    """What the server of a test ends with."""


def devices() -> dict[int, Device]:
    """Five, two of which give themselves the same name."""
    return {node: Honest(node, name="same" if node in (2, 5) else "") for node in range(1, 6)}


def left(run: Path) -> dict[str, object]:
    """What a run left, but for times."""
    files: dict[str, object] = dict(tree(run))
    files["metrics.jsonl"] = [without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for path in run.glob("rounds/*/round.json"):
        files[path.relative_to(run).as_posix()] = without_times(path.read_text())
    files["config.json"] = json.loads((run / "config.json").read_text()) | {"output": ""}
    return without_records(files) | {"records": records_of(run)}


def without_times(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in TIMES}


def stop(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, number: int, *, before: bool) -> None:
    """Make the method raise in its call of that number, or after it."""
    method, calls = getattr(kind, name), iter(range(1, 1000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        last = next(calls) == number
        if last and before:
            raise Stopped
        result = method(*arguments, **options)
        if last:
            raise Stopped
        return result

    monkeypatch.setattr(kind, name, stopping)


class Runs:
    """Runs of one configuration, whole and stopped."""

    def __init__(self, play: Player, **settings: Any) -> None:
        self.folder = play.folder
        self._play, self._settings = play, {"rounds": ROUNDS, "devices_per_round": 3} | settings

    def whole(self, **settings: Any) -> Played:
        return self._play.soundly(devices(), **self._settings | settings)

    def stopped(self, kind: type, name: str, number: int, *, before: bool = False) -> Played:
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, kind, name, number, before=before)
            played = self._play(devices(), **self._settings)
        assert isinstance(played.error, Stopped)
        return played

    def goes_on(self, played: Played, **settings: Any) -> Played:
        return self._play(devices(), goes_on=played, **self._settings | settings)
