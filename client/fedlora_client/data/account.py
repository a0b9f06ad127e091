"""What of a device's data is learned and what is not, file by file: told before a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedlora.counted import counted
from fedlora.data.datasets import DeviceData

from fedlora_client.data.windows import Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The examples of a device or of one of its files. An example is a record, or all of a text file."""

    name: str
    train: int = 0  # in the windows that are trained on, those that were cut among them
    cut: int = 0
    left_out: int = 0  # nothing that is learned would have fitted in a window, or the record itself says so
    held_out: int = 0  # in the windows that are measured on
    held_out_left_out: int = 0

    def __str__(self) -> str:
        parts = [f"{counted(self.train, 'example')} to train on"]
        parts += [f"{self.cut} of them cut"] if self.cut else []
        parts += [f"{self.left_out} left out"] if self.left_out else []
        parts += [f"{self.held_out} held out"]
        parts += [f"{self.held_out_left_out} more left out of what is measured"] if self.held_out_left_out else []
        return f"{self.name}: {', '.join(parts)}"


def account(data: DeviceData, train: Windows | None, held_out: Windows | None) -> Account:
    """All of a device's data; without `held_out`, nothing is measured, without `train` it never trains."""
    measured = held_out.examples if held_out else 0
    trained = (train.examples, train.truncated, train.skipped) if train else (0, 0, 0)
    return Account(
        name=data.name, train=trained[0], cut=trained[1], left_out=trained[2] + data.left_out,
        held_out=measured, held_out_left_out=len(data.held_out) - measured,
    )  # fmt: skip


def by_file(data: DeviceData, train: Windows, held_out: Windows | None) -> Iterator[Account]:
    """The same of each file, where the data come from files."""
    begin = held_begin = 0
    for source in data.sources:
        end, held_end = begin + source.train, held_begin + source.held_out
        skipped = _within(train.skipped_at, begin, end)
        held_skipped = _within(held_out.skipped_at, held_begin, held_end) if held_out else source.held_out
        yield Account(
            name=source.name, train=source.train - skipped, cut=_within(train.truncated_at, begin, end),
            left_out=skipped + source.left_out, held_out=source.held_out - held_skipped, held_out_left_out=held_skipped,
        )  # fmt: skip
        begin, held_begin = end, held_end


def notices(data: DeviceData) -> Iterator[str]:
    """What a person should know of the data: of each file, and of what was not read."""
    for source in data.sources:
        yield from (f"{source.name}: {notice}" for notice in source.notices)
    yield from data.notices


def chat_notices(windows: Windows) -> Iterator[str]:
    """What of its chats is not learned though the data say it."""
    if windows.not_found:
        yield (
            f"not learned: {counted(windows.not_found, 'answer')} in chats, not to be told from the rest in what the "
            "base's chat template writes; {% generation %} marks in the template would tell"
        )
    if windows.unheard:
        yield f"the base's chat template writes nothing of these fields of messages: {', '.join(windows.unheard):.200}"


def left_out_notice(left_out: int, of: int, length: int) -> str:
    """What of so many examples is not learned, for its answer begins where a window has ended; "" for nothing."""
    if not left_out:
        return ""
    return (
        f"{left_out} of {counted(of, 'example')} left out: no token of the answer is among the first {length}; raise "
        "train.sequence_length, or shorten the prompts"
    )


def _within(numbers: Sequence[int], begin: int, end: int) -> int:
    return sum(begin <= number < end for number in numbers)
