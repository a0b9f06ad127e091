"""Examples become training windows of equal length.

    | <s> T o _ b e | <s> n o t |        plain text and documents: one row of all, cut every T tokens
    | <s> Q A | <s> Q A A | . . |        completions and chats: whole ones, several to a window, padded at the end

No example is read or learned across another: `starts` tells where the example of each position begins.
"""

# M windows of T tokens

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fedlora.counted import counted
from fedlora.data.chat_template import ChatTemplate, load_chat_template
from fedlora.data.examples import Chat, Example, Labelled, TextRecord
from fedlora.errors import ConfigError, DataError
from fedlora.family import DecoderShape
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from fedlora_client.data.best_fit import best_fit_decreasing
from fedlora_client.data.encoding import IGNORED, ExampleEncoder, Pairs
from fedlora_client.data.tokenizer import open_tokenizer

__all__ = ["IGNORED", "Windows", "make_windows", "parts", "read_windows"]


@dataclass(frozen=True, slots=True)
class Windows:
    """M windows of T tokens: what is read, what is learned after it, and where its example begins.

    A position p attends to [starts[p], p], and its rotary position is p - starts[p]. Padding attends to itself alone.
    """

    inputs: Tensor  # int64 [M, T]
    targets: Tensor  # int64 [M, T], IGNORED where nothing is learned: padding and prompts
    starts: Tensor  # int64 [M, T], an index in the same window
    examples: int = 0  # that are in the windows
    truncated: int = 0  # of these, completions and chats that were cut to fit
    skipped: int = 0  # completions and chats of which nothing that is learned would have fitted
    truncated_at: tuple[int, ...] = ()  # which examples, counted from 0
    skipped_at: tuple[int, ...] = ()
    not_found: int = 0  # answers of chats that could not be told from the rest of their text, and are not learned
    unheard: tuple[str, ...] = ()  # fields of messages that the base's chat template does not write
    spans: NDArray[np.int64] | None = None  # [E, 2], the first and the last window of each example

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Tensor) -> Windows:
        """The windows with these numbers."""
        return Windows(self.inputs[rows], self.targets[rows], self.starts[rows])

    @property
    def learned_tokens(self) -> int:
        return int((self.targets != IGNORED).sum())

    @property
    def learned_in_each(self) -> Tensor:
        """int64 [M]"""
        return (self.targets != IGNORED).sum(1)

    def examples_in(self, drawn: NDArray[np.bool_]) -> int:
        """How many different examples have a part in the windows that are `drawn` [M]."""
        if self.spans is None:
            return 0
        before = np.concatenate([[0], np.cumsum(drawn)])  # of each window, how many are drawn
        return int((before[self.spans[:, 1] + 1] > before[self.spans[:, 0]]).sum())


def read_windows(examples: Sequence[Example], directory: Path, shape: DecoderShape, length: int, where: str) -> Windows:
    """`make_windows` with the tokenizer, and for chats the chat template, of a pack's or a checkpoint's directory."""
    # A template is read by those who have chats: a damaged one is nobody else's error.
    chats = any(isinstance(example, Chat) for example in examples)
    template = load_chat_template(directory) if chats else None
    return make_windows(examples, open_tokenizer(directory), shape, length, where, chat_template=template)


def make_windows(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    shape: DecoderShape,
    length: int,
    where: str,
    *,
    chat_template: ChatTemplate | None = None,
) -> Windows:
    """The examples in windows of `length` tokens; the last token of each is only learned, so it takes no place.

    Raises ConfigError where `length` exceeds the base's context; DataError where there is nothing to learn, or a chat and
    no template for it; PackError where the tokenizer or the template is damaged or another model's.
    """
    if length > shape.max_positions:
        raise ConfigError(f"train.sequence_length is {length}; the base's context is {shape.max_positions} tokens")
    encoder = ExampleEncoder(tokenizer=tokenizer, shape=shape, chat_template=chat_template)
    row: list[Pairs] = []
    whole: list[Pairs] = []
    not_found = 0
    unheard: dict[str, None] = {}  # a set that keeps its order
    truncated: list[int] = []
    skipped: list[int] = []
    for number, example in enumerate(examples):
        pairs = encoder.pairs(example, f"{where}: example {number + 1}")
        if isinstance(example, str | TextRecord | Labelled):
            row += [pairs] if len(pairs) else []
            continue
        not_found += pairs.not_found
        unheard |= dict.fromkeys(pairs.unheard)
        fitting = pairs.cut(length)
        if not len(fitting):
            skipped.append(number)
            continue
        if len(fitting) < len(pairs.cut(len(pairs))):
            truncated.append(number)
        whole.append(fitting)
    if skipped and not row and not whole:
        raise DataError(
            f"{where}: none of the {counted(len(skipped), 'example')} has anything to learn in its first {length} "
            f"tokens; raise train.sequence_length (this base: at most {shape.max_positions}), or shorten the prompts"
        )
    if not row and not whole:
        raise DataError(f"{where}: no text to train or measure on; give this device data, or leave it out of the run")
    inputs, targets, starts, spans = _filled(row, whole, length)
    return Windows(
        inputs, targets, starts, examples=len(row) + len(whole), truncated=len(truncated), skipped=len(skipped),
        truncated_at=tuple(truncated), skipped_at=tuple(skipped),
        not_found=not_found, unheard=tuple(unheard), spans=spans,
    )  # fmt: skip


def parts(
    windows: Sequence[Windows], micro_batch: int, rows: Sequence[Tensor] | None = None
) -> Iterator[list[Windows]]:
    """`micro_batch` at a time of the windows that have the numbers in `rows`, the same many of each; None: of all.

    A step may draw more of them than memory would hold a second time.
    """
    rows = rows or [torch.arange(len(each)) for each in windows]
    for numbers in zip(*(torch.split(each, micro_batch) for each in rows), strict=True):
        yield [each.batch(some) for each, some in zip(windows, numbers, strict=True)]


def _filled(row: list[Pairs], whole: list[Pairs], length: int) -> tuple[Tensor, Tensor, Tensor, NDArray[np.int64]]:
    """(inputs, targets, starts), each [M, T]: the row's windows, then those of whole examples; and their spans [E, 2]."""
    places: list[tuple[int, Pairs]] = []  # where each example begins, counted over all windows
    end = 0
    for pairs in row:
        places.append((end, pairs))
        end += len(pairs)
    row_windows = -(-end // length)
    bins = best_fit_decreasing([len(pairs) for pairs in whole], length)
    for window, numbers in enumerate(bins, row_windows):
        end = window * length
        for number in numbers:
            places.append((end, whole[number]))
            end += len(whole[number])
    size = (row_windows + len(bins)) * length
    inputs, targets, begins = np.zeros(size, np.int64), np.full(size, IGNORED), np.arange(size)
    for begin, pairs in places:
        there = slice(begin, begin + len(pairs))
        inputs[there], targets[there], begins[there] = pairs.inputs, pairs.targets, begin
    window_begins = np.arange(0, size, length)[:, None]
    # An example that runs over begins anew in the next window.
    starts = begins.reshape(-1, length)
    np.maximum(starts, window_begins, out=starts)
    starts -= window_begins
    first, second, third = (torch.from_numpy(part).view(-1, length) for part in (inputs, targets, starts))
    ends = [(begin, begin + len(pairs) - 1) for begin, pairs in places]
    return first, second, third, np.array(ends, np.int64).reshape(-1, 2) // length
