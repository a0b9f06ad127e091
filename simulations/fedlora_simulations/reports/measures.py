"""What a report knows of a round: numbers by a dotted key, such as `loss`, `test.accuracy` or `aggregation_error`.

Groups of numbers that this version does not know, such as those of clients held out, get their key all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from fedlora_server.run.loss_over_devices import loss_over_devices
from fedlora_server.run.round_record import RoundRecord

Record = Mapping[str, Any]
Over = Literal["last", "mean", "sum"]  # how rounds become one number

_SCORES = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "Matthews' correlation"}
_NEVER = "never_trained"  # of devices that data.partition.held_out takes out of training
_PARTS = {"scores": "held-out texts", "test": "test set", _NEVER: "clients who never trained"}
_SHARES = ("accuracy", "aggregation_error", "exact_match")
_MORE_IS_BETTER = ("accuracy", "macro_f1", "mcc", "exact_match", "f1")
_COUNTS = ("texts", "tokens", "devices", "examples")  # of a group: how much was measured, and no measure
_MOST_EXTRA = 24  # numbers of groups that are not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How a number is called and written."""

    key: str
    title: str
    over: Over = "last"
    is_share: bool = False  # written and drawn as per cent
    less_is_better: bool | None = None
    digits: int = 3
    from_zero: bool = False  # drawn with 0 in sight

    def text(self, value: float) -> str:
        """The value as it stands in a table."""
        return f"{value:.{max(0, self.digits - 2)}%}" if self.is_share else f"{value:.{self.digits}f}"

    def difference(self, value: float) -> str:
        """A difference of two values, in points where they are per cent."""
        return f"{100 * value:+.{max(0, self.digits - 2)}f}" if self.is_share else f"{value:+.{self.digits}f}"


_KNOWN = {
    measure.key: measure
    for measure in (
        Measure(key="loss", title="held-out loss", less_is_better=True),
        Measure(key="loss.worst_tenth", title="loss, worst tenth", less_is_better=True),
        Measure(key="loss.median", title="loss, median device", less_is_better=True),
        Measure(key="loss.std", title="loss, spread over devices"),
        Measure(key="loss.weighted_mean", title="loss, by examples", less_is_better=True),
        Measure(key="accuracy.mean", title="accuracy, mean of devices", is_share=True, less_is_better=False),
        Measure(key="accuracy.worst_tenth", title="accuracy, worst tenth", is_share=True, less_is_better=False),
        Measure(key="aggregation_error", title="aggregation error", over="mean", is_share=True, from_zero=True),
        Measure(key="mb_down", title="MB down", over="sum", digits=2, less_is_better=True, from_zero=True),
        Measure(key="mb_up", title="MB up", over="sum", digits=2, less_is_better=True, from_zero=True),
        Measure(key="kb_down", title="kB down, a message", over="mean", digits=1, less_is_better=True, from_zero=True),
        Measure(key="kb_up", title="kB up, a message", over="mean", digits=1, less_is_better=True, from_zero=True),
        Measure(key="seconds", title="seconds", over="sum", digits=1, from_zero=True),
        Measure(key="server_s", title="server, s a round", over="mean", digits=3, from_zero=True),
        Measure(key="peak_mb", title="memory, MB at most", digits=0, from_zero=True),
    )
}  # fmt: skip


def measure_of(key: str) -> Measure:
    """How the number of a key is called and written."""
    if key in _KNOWN:
        return _KNOWN[key]
    part, _, name = key.rpartition(".")
    title = f"{_PARTS.get(part, _words(part))}: {_SCORES.get(name, _words(name))}" if part else _words(name)
    is_loss, is_better = "loss" in name, any(word in name for word in _MORE_IS_BETTER)
    return Measure(
        key=key,
        title=title,
        is_share=any(word in name for word in _SHARES),
        less_is_better=True if is_loss else False if is_better else None,
    )


def numbers_of(record: Record, devices: Iterable[str] = ()) -> dict[str, float]:
    """{key: number} of one round, finite ones only; `devices` are the names by which a group may be told."""
    losses, accuracy = record["loss"], record.get("accuracy") or {}
    over = loss_over_devices(losses, record.get("held_out_examples") or {})
    found: dict[str, float] = {}
    if over:
        found |= {"loss": over["mean"]} if "mean" in over else {}
        found |= {
            f"loss.{name}": over[name] for name in ("worst_tenth", "median", "std", "weighted_mean") if name in over
        }
    if accuracy:
        least = sorted(accuracy.values())[: math.ceil(len(accuracy) / 10)]
        found |= {"accuracy.mean": fmean(accuracy.values()), "accuracy.worst_tenth": fmean(least)}
    if never := record.get(_NEVER):
        of_loss = {"mean": "loss", "worst_tenth": "worst_tenth_loss"}
        found |= {f"{_NEVER}.{ours}": never[name] for name, ours in of_loss.items() if name in never}
        found |= {f"{_NEVER}.{name}": never[name] for name in _SCORES if name in never}
    for part in ("scores", "test"):
        found |= {f"{part}.{name}": value for name, value in (record.get(part) or {}).items() if name not in _COUNTS}
    if record["round"]:
        peaks = [told["peak_mb"] for told in (record.get("costs") or {}).values() if "peak_mb" in told]
        found |= {"mb_down": record["bytes_down"] / 1e6, "mb_up": record["bytes_up"] / 1e6}
        found |= {"seconds": record["seconds"], "server_s": record["server_s"]}
        found |= {"peak_mb": max(peaks)} if peaks else {}
        if record["aggregation_error"] is not None:
            found["aggregation_error"] = record["aggregation_error"]
    found |= _extra(record, set(devices) | set(losses))
    return {key: float(value) for key, value in found.items() if _is_finite(value)}


def is_extra(key: str) -> bool:
    """Whether a key is of a group that this version does not know."""
    return key not in _KNOWN and key.partition(".")[0] not in _PARTS


def _extra(record: Record, devices: set[str]) -> dict[str, float]:
    """The numbers of what a later version, or a part beside ours, wrote into the line."""
    known, found = RoundRecord(0).line().keys(), dict[str, float]()
    for name, value in record.items():
        if name in known:
            continue
        if _is_finite(value):
            found[name] = value
        elif isinstance(value, Mapping):
            numbers = {str(key): number for key, number in value.items() if _is_finite(number)}
            if numbers and set(numbers) & devices:
                found |= {f"{name}.mean": fmean(numbers.values()), f"{name}.least": min(numbers.values())}
                found[f"{name}.most"] = max(numbers.values())
            else:
                found |= {f"{name}.{key}": number for key, number in numbers.items() if key not in _COUNTS}
    return dict(list(found.items())[:_MOST_EXTRA])


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ", ")
