"""What each step of the batch reads, who joins it, and who has to leave when memory runs out.

A step reads a part of the prompts that are here, then one token of every sequence that decodes, so that a long prompt
delays the others by one part at a time. The oldest prompt and the shortest take turns: a long one holds up no short ones,
and short ones do not hold up a long one. Rows that decode stand wherever they are: those between them read nothing.

Rows are shared fairly (`fair_queue`). Who has more than others and has all rows, or all memory, gives one up to those who
wait: the sequence of theirs that joined last is preempted. So is it where memory does not suffice for the next token of
everybody. It waits, and reads again what was not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from fedlora.errors import FedloraError
from numpy.typing import NDArray

from fedlora_serve.batching.block_manager import BlockManager, computes_prefix_of
from fedlora_serve.batching.fair_queue import FairQueue, rows_by_share
from fedlora_serve.batching.kv_cache import KVCache, blocks_of
from fedlora_serve.batching.request import FinishReason
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.rows import Rows
from fedlora_serve.batching.sequence import SequenceState, failure_message

_ALONE_TOKENS = 512  # of prompts in a step, where no sequence waits for it


class Scheduler:
    """Takes sequences in, and takes them further step by step until they end. One thread at a time."""

    def __init__(
        self, graph: RowGraph, kv_cache: KVCache, *, rows: int, budget_blocks: int, prefill_tokens: int
    ) -> None:
        self.blocks = BlockManager(kv_cache, budget_blocks)
        self.preempted: list[SequenceState] = []  # who had to leave, and has to come back: the newest first
        self._rows = Rows(kv_cache, graph.adapters)
        self._graph, self._capacity = graph, kv_cache.capacity
        self._max_rows, self._prefill_tokens = rows, prefill_tokens
        self._oldest_first = cycle((True, False))

    @property
    def sequences(self) -> list[SequenceState]:
        """Those that have a row, in the order of the rows."""
        return self._rows.sequences

    def admit(self, waiting: FairQueue) -> None:
        """Let those in whose turn it is, as long as there is a row and memory for what they have to read.

        Every sequence that is here has a block to grow by, lest who comes in is preempted at once.
        """
        while sequence := waiting.next(self.sequences):
            if not self._has_place_for(sequence):
                last = max(self.sequences, key=self._by_rows, default=None)
                if last is None or not self._has_more_rows(last, sequence):
                    return
                self.blocks.keep_prefix(self.sequences.index(last), last)
                self._preempt(last)
                waiting.put_back(self.preempted)
                continue
            waiting.remove(sequence)
            try:
                self._rows.join(sequence)
            except Exception as error:  # it is in no list now, and must be told here
                sequence.end("error", failure_message(error))

    def step(self) -> None:
        """Read a part of some prompts, and take every sequence that decodes one token further."""
        self._prefill()
        self._decode()

    def end(self, sequence: SequenceState, reason: FinishReason, message: str = "") -> None:
        """End a sequence of the batch, and free its row."""
        if reason in ("stop", "length"):
            self.blocks.keep_prefix(self.sequences.index(sequence), sequence)
        self._rows.leave(sequence)
        sequence.end(reason, message)

    def end_all(self, message: str) -> None:
        """Whatever state they are in: end every sequence of the batch with an error, and free its row."""
        for sequence in self._rows.clear():
            sequence.end("error", message)

    def _prefill(self) -> None:
        rows = self._rows_to_prefill()
        if not rows:
            return
        is_alone = not any(sequence.is_decoding for sequence in self.sequences)
        token_budget = max(_ALONE_TOKENS, self._prefill_tokens) if is_alone else self._prefill_tokens
        shortest = min(rows, key=lambda row: self.sequences[row].uncomputed_tokens)
        first = rows[0] if next(self._oldest_first) else shortest
        parts: list[Part] = []
        width = 0  # every part is filled up to the widest, which must fit its row
        for row in range(first, len(self.sequences)):
            sequence = self.sequences[row]
            free = self._capacity - max([sequence.length, *(part.length for part in parts)])
            most = min(token_budget // (len(parts) + 1), free)
            if row not in rows or most < max(width, 1):
                break
            end = sequence.length + min(sequence.uncomputed_tokens, most)
            parts.append(Part(sequence.tokens[sequence.length : end], sequence.length, sequence.adapter))
            width = max(width, end - sequence.length)
        self._run(first, parts)

    def _rows_to_prefill(self) -> list[int]:
        """The rows with a prompt to read, the oldest first.

        Who begins like an older one begins later: it finds what that one is about to read.
        """
        unread = [row for row, sequence in enumerate(self.sequences) if not sequence.is_decoding]
        unread.sort(key=lambda row: self.sequences[row].number)
        for place, row in enumerate(unread):
            sequence = self.sequences[row]
            older = [self.sequences[each] for each in unread[:place]]
            if not (sequence.has_begun or any(computes_prefix_of(each, sequence) for each in older)):
                self.blocks.load_prefix(row, sequence)
        return [row for row in unread if self.sequences[row].has_begun and not self.sequences[row].is_decoding]

    def _decode(self) -> None:
        while any(
            sequence.is_decoding and not self.blocks.grow(row, sequence.length + 1)
            for row, sequence in enumerate(self.sequences)
        ):
            self._preempt(max(self.sequences, key=self._by_rows))
        last = max((row for row, sequence in enumerate(self.sequences) if sequence.is_decoding), default=-1)
        self._run(
            0,
            [
                Part(sequence.tokens[-1:] if sequence.is_decoding else (), sequence.length, sequence.adapter)
                for sequence in self.sequences[: last + 1]
            ],
        )

    def _has_place_for(self, sequence: SequenceState) -> bool:
        if len(self.sequences) == self._max_rows:
            return False
        return self.blocks.make_room(blocks_of(len(sequence.tokens)) + len(self.sequences))

    def _by_rows(self, sequence: SequenceState) -> tuple[int, int]:
        """The largest is, of whoever has the most rows, the sequence that joined last."""
        return rows_by_share(self.sequences)[sequence.request.share], sequence.number

    def _has_more_rows(self, running: SequenceState, waiting: SequenceState) -> bool:
        """Whether the one's rows are still no fewer than the other's where it gives up one for the other."""
        rows = rows_by_share(self.sequences)
        return rows[running.request.share] > rows[waiting.request.share] + 1

    def _preempt(self, sequence: SequenceState) -> None:
        self._rows.leave(sequence)
        sequence.length, sequence.has_begun = 0, False
        self.preempted.append(sequence)

    def _run(self, first: int, parts: Sequence[Part]) -> None:
        """One step over the rows from `first` on; sequences whose tokens are all read get one more, and may end with it."""
        if not parts:
            return
        sequences = self.sequences[first : first + len(parts)]
        try:
            scores = self._graph.step(first, parts)
        except FedloraError as error:
            reading = [sequence for sequence, part in zip(sequences, parts, strict=True) if part.tokens]
            self._end_each([(sequence, "error", str(error)) for sequence in reading])
            return
        ended: list[tuple[SequenceState, FinishReason, str]] = []
        for place, (sequence, part) in enumerate(zip(sequences, parts, strict=True)):
            sequence.length += len(part.tokens)
            if part.tokens and sequence.is_prompt_only:
                self.blocks.keep_prefix(first + place, sequence)
            if part.tokens and not sequence.uncomputed_tokens:
                reason, message = _next_token(sequence, scores[place])
                if reason:
                    ended.append((sequence, reason, message))
        self._end_each(ended)

    def _end_each(self, ended: Sequence[tuple[SequenceState, FinishReason, str]]) -> None:
        """The last rows first: what takes over a row is then never one that has ended."""
        for sequence, reason, message in reversed(ended):
            self.end(sequence, reason, message)


def _next_token(sequence: SequenceState, scores: NDArray[np.float32]) -> tuple[FinishReason | None, str]:  # [V]
    """Choose it; why the sequence ends with it, if it does, and what went wrong."""
    if not np.isfinite(scores.sum(dtype=np.float64)):
        culprit = f"with adapter {sequence.adapter.name} " if sequence.adapter else ""
        return "error", f"{culprit}the scores of the next token are not finite: its values are too large"
    try:
        return sequence.take(scores), ""
    except Exception as error:  # no reason to end the others' sequences
        return "error", failure_message(error)
