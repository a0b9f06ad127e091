"""What the runs of a study gave: one JSON line each, in DIR/results.jsonl."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError
from fedlora.files.bounded import read_bounded
from fedlora.files.json_text import parse_json

from fedlora_simulations.study.definition import LOSS

RESULTS = "results.jsonl"
_MAX_BYTES = 1 << 30
_BOUND = "aggregation.max_weight"
_KEYS = RunConfig().flat()
_MOST = 1e300  # of a number in a result: JSON's integers have no end


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One finished run."""

    digest: str
    row: str
    setting: str
    seed: int
    lr: float
    failure: str = ""  # why there are no numbers
    loss: float | None = None  # held-out, nats per token or text: after the last round, the mean over the devices
    base_loss: float | None = None  # before the first
    bytes_down: float | None = None  # of a device's training message, the mean over devices and rounds
    bytes_up: float | None = None
    aggregation_error: float | None = None  # the mean over the rounds
    server_s: float | None = None  # of checking, aggregating and committing, the mean over the rounds
    loss_unit: str = "token"  # of an encoder's loss: text
    # Over all devices, each of the four as the scenario's data give it; None in a result of an earlier version.
    examples: int | None = None  # trained on
    cut_examples: int | None = None  # of these, to the length of a window
    left_out_examples: int | None = None
    held_out_examples: int | None = None  # measured
    # Of the held-out data after the last round, by the names of CHOOSE_BY; none in a result of an earlier version.
    measures: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)  # replies that were refused or did not come, by reason
    seconds: float = 0.0  # that the run took
    machine: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def value(self, measure: str) -> float | None:
        """One of CHOOSE_BY; None where it was not measured."""
        return self.loss if measure == LOSS else self.measures.get(measure)


def _wrong_field(result: Result) -> str:
    """The first field whose value is of another kind than its own; "" where all are sound."""
    for each in fields(result):
        value, kind = getattr(result, each.name), str(each.type)
        if each.name == "excluded":
            sound = isinstance(value, dict)
        elif each.name == "config":
            sound = isinstance(value, dict) and all(_fits(key, one) for key, one in value.items())
        elif each.name == "measures":
            sound = isinstance(value, dict) and all(map(_is_number, value.values()))
        elif kind == "str":
            sound = isinstance(value, str)
        else:
            sound = _is_number(value) or (value is None and "None" in kind)
        if not sound:
            return each.name
    return ""


def _fits(key: str, value: Any) -> bool:
    """Whether it can be the value of a key of a configuration, be it one of another version."""
    default = _KEYS.get(key, value)
    if key == "train.lr" and value != default:  # a number, or auto
        return _is_number(value)
    is_like = type(value) is type(default) or (type(value) is int and isinstance(default, float))
    return is_like and (isinstance(value, bool | str) or _is_number(value))


def _is_number(value: Any) -> bool:
    return (type(value) is int or (type(value) is float and math.isfinite(value))) and abs(value) < _MOST


def _content(path: Path) -> bytes:
    try:
        return read_bounded(path, _MAX_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name another directory") from None


class Results:
    """The results of one study; the last line of a run counts."""

    def __init__(self, directory: Path | str) -> None:
        """Read what there is. Raises ConfigError for a file that holds something else."""
        self.path = Path(directory) / RESULTS
        self._results: dict[str, Result] = {}
        self._sound_bytes = 0  # a run that was killed while it wrote leaves half a line
        content = _content(self.path)
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                result = Result(**parse_json(line))
                if wrong := _wrong_field(result):
                    raise TypeError(f"{wrong} is {getattr(result, wrong)!r:.60}")
            except (ValueError, TypeError, RecursionError) as error:
                raise ConfigError(
                    f"{self.path}: line {number}: not a result of a study: {error}; remove it, or name another directory"
                ) from None
            self._results[result.digest] = result
            self._sound_bytes += len(line)

    @property
    def are_from_before(self) -> bool:
        """Whether some were made when nothing bounded what one device can do."""
        return any(result.config and _BOUND not in result.config for result in self._results.values())

    def all(self) -> list[Result]:
        """What every run gave, in the order in which they first stood there."""
        return list(self._results.values())

    def get(self, digest: str) -> Result | None:
        """What a run gave, be it a failure."""
        return self._results.get(digest)

    def done(self, digest: str) -> Result | None:
        """What a run gave that did not fail."""
        result = self._results.get(digest)
        return None if result is None or result.failure else result

    def add(self, result: Result) -> None:
        """Append one line, and be sure that the disk has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(result), allow_nan=False).encode() + b"\n"
        with self.path.open("ab") as file:
            file.truncate(self._sound_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._sound_bytes += len(line)
        self._results[result.digest] = result
