"""What happened in one round: a line of metrics.jsonl, and, for what training gave, the round.json that is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedlora.counted import counted
from fedlora.errors import RunError
from fedlora.files.documents import read_object

from fedlora_server.run.loss_over_devices import accuracy_over_devices, loss_over_devices

_ADDED = (  # that earlier versions did not write
    "examples", "cut_examples", "left_out_examples", "held_out_examples", "held_out_left_out", "measured_of",
    "late_answers", "staleness", "loss_over_devices", "costs", "accuracy", "scores", "test",
    "accuracy_over_devices", "never_trained_loss", "never_trained_scores", "never_trained",
)  # fmt: skip
MAX_LOSS = 1e9  # in nats: a device's word beyond it is no loss, and would leave no mean over the devices
_MOST = 1e300  # of a number in a record
_MOST_EXAMPLES = 1 << 53  # that a device may say that it has: what every reader of JSON takes whole


@dataclass(slots=True)
class RoundRecord:
    """One round, as far as it has come. Round 0 is the base."""

    round: int
    devices: int = 0  # that were asked
    replies: int = 0  # that were sound
    excluded: Counter[str] = field(default_factory=Counter)  # by reason
    bytes_down: int = 0
    bytes_up: int = 0
    aggregation_error: float | None = None  # relative, against the weighted mean of B A
    norms: dict[str, float] = field(default_factory=dict)  # of the committed gamma B A, by module
    server_s: float = 0.0  # of checking, aggregating and committing
    train_loss: dict[str, float] = field(default_factory=dict)  # by device, nats per token, of an encoder per text
    loss: dict[str, float] = field(default_factory=dict)  # held-out, by device
    nodes: dict[str, int] = field(default_factory=dict)  # by device: those that were heard for the first time
    seconds: float = 0.0
    # By device, what it says of its data: examples that it trains on, of these cut to the length of a window, left out;
    # and of its held-out ones those that are measured, and left out. Earlier versions kept none of these.
    examples: dict[str, int] = field(default_factory=dict)
    cut_examples: dict[str, int] = field(default_factory=dict)
    left_out_examples: dict[str, int] = field(default_factory=dict)
    held_out_examples: dict[str, int] = field(default_factory=dict)
    held_out_left_out: dict[str, int] = field(default_factory=dict)
    measured_of: int = 0  # devices that were asked to measure
    late_answers: int = 0  # that came in this round to questions of earlier ones, and were ignored
    staleness: dict[str, float] = field(
        default_factory=dict
    )  # of the updates, in commits: mean and most; none: all new
    loss_over_devices: dict[str, float] = field(default_factory=dict)  # of `loss`: see `loss_over_devices.py`
    accuracy: dict[str, float] = field(default_factory=dict)  # held-out, by device: where texts have labels
    accuracy_over_devices: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(
        default_factory=dict
    )  # of the held-out texts of all devices: see `label_counts.py`
    test: dict[str, float] = field(
        default_factory=dict
    )  # of the test set that all measure: loss, texts or tokens, scores
    # Of devices that never train (data.partition.held_out): losses by device, scores of all their texts, and both together.
    never_trained_loss: dict[str, float] = field(default_factory=dict)
    never_trained_scores: dict[str, float] = field(default_factory=dict)
    never_trained: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)  # of training, by device: see `device_costs.py`

    def count_train(self, device: str, metrics: Mapping[str, float]) -> None:
        """Keep what a device says of the examples that it trains on."""
        for name in ("examples", "cut_examples", "left_out_examples"):
            _count(getattr(self, name), device, metrics.get(name))

    def count_held_out(self, device: str, metrics: Mapping[str, float]) -> None:
        """Keep what a device says of the examples that it measures on."""
        _count(self.held_out_examples, device, metrics.get("examples"))
        _count(self.held_out_left_out, device, metrics.get("left_out_examples"))

    def line(self) -> dict[str, Any]:
        self.loss_over_devices = loss_over_devices(self.loss, self.held_out_examples)
        self.accuracy_over_devices = accuracy_over_devices(self.accuracy, self.held_out_examples)
        over = loss_over_devices(self.never_trained_loss, self.held_out_examples)
        self.never_trained = {**over, **self.never_trained_scores}
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"excluded": dict(sorted(self.excluded.items()))}  # in whichever order they were refused

    def summary(self, rounds: int) -> str:
        """The round in one line, of so many."""
        parts = [f"round {self.round} of {rounds}"]
        if self.round:
            parts.append(f"{self.replies} of {counted(self.devices, 'device')}")
        if self.loss:
            fewer = f" over {len(self.loss)} of {counted(self.measured_of, 'device')}" * (
                len(self.loss) < self.measured_of
            )
            over = loss_over_devices(self.loss, self.held_out_examples)
            spread = f" (worst tenth {over['worst_tenth']:.4f}, spread {over['std']:.4f})" * (len(self.loss) > 1)
            parts.append(f"mean held-out loss {over['mean']:.4f}{fewer}{spread}")
            parts += [f"accuracy {self.scores['accuracy']:.1%}"] if self.scores else []
            parts += [f"test set {_told(self.test)}"] if self.test else []
            parts += (
                [f"{len(never)} who never train {fmean(never.values()):.4f}"]
                if (never := self.never_trained_loss)
                else []
            )
        elif self.measured_of:
            parts.append(f"held-out loss of none of {counted(self.measured_of, 'device')}")
        if self.excluded:
            parts.append(
                f"excluded {', '.join(f'{count} {reason}' for reason, count in sorted(self.excluded.items()))}"
            )
        if self.late_answers:
            parts.append(f"{counted(self.late_answers, 'late answer')} ignored")
        if self.staleness:
            parts.append(f"staleness {self.staleness['mean']:.1f}, at most {self.staleness['most']:.0f}")
        if self.aggregation_error is not None:
            parts.append(f"aggregation error {self.aggregation_error:.2%}")
        return ", ".join([*parts, f"{self.seconds:.1f} s"])


def read_record(path: Path) -> RoundRecord:
    """The record in a round.json. Raises RunError, naming the file and what is wrong in it."""
    values = read_object(path, RunError, "the record of a round")
    blank = RoundRecord(0).line()
    values = {name: blank[name] for name in _ADDED} | values
    if values.keys() != blank.keys():
        wrong = sorted(values.keys() ^ blank.keys())
        raise RunError(f"{path}: not the record of a round: {', '.join(wrong)} missing or unknown; copy the run again")
    if name := wrong_value(values):
        raise RunError(f"{path}: {name} is {values[name]!r:.60}; the file was changed: copy the run again")
    return RoundRecord(**values | {"excluded": Counter(values["excluded"])})


def wrong_value(values: Mapping[str, Any]) -> str:
    """The first of the record's values here that is of another kind than its own; "" where all are sound."""
    for name, default in RoundRecord(0).line().items():
        value = values.get(name, default)
        if name == "costs":
            sound = isinstance(value, Mapping) and all(map(_is_numbers, value.values()))
        elif isinstance(default, dict):
            sound = _is_numbers(value)
        else:
            sound = _is_number(value) or (value is None and default is None)
        if not sound:
            return name
    return ""


def _is_numbers(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_number, value.values()))


def _is_number(value: object) -> bool:
    """One that every reader of the record can work with: JSON's integers have no end, Python's JSON has NaN, and the sum of
    two of the largest floats is infinite."""
    return (type(value) is int and abs(value) <= 1 << 64) or (type(value) is float and abs(value) <= _MOST)


def _told(test: Mapping[str, float]) -> str:
    return f"{test['accuracy']:.1%} right" if "accuracy" in test else f"loss {test['loss']:.4f}"


def _count(counts: dict[str, int], device: str, value: float | None) -> None:
    """Keep a number that a device sent, if it can be a number of examples."""
    if value is not None and 0 <= value < _MOST_EXAMPLES:
        counts[device] = int(value)
