"""What each step of the batch reads, who joins it, and who has to leave when memory runs out.

A step reads a part of the prompts that are here, then one token of every sequence that decodes, so that a long prompt
delays the others by one part at a time. The oldest prompt and the shortest take turns: a long one holds up no short ones,
and short ones do not hold up a long one. Rows that decode stand wherever they are: those between them read nothing.

Rows are shared fairly (`fair_queue`), and so is time (`fair_time`): a step reads the sequences that are due. Who has more
rows than others and has all of them, or all memory, gives one up to those who wait: the sequence of theirs that joined last
is preempted. So is it where memory does not suffice for the next token of everybody. It waits, and reads again what was not
kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import cycle

import numpy as np
from fedlora.errors import FedloraError
from numpy.typing import NDArray

from fedlora_serve.batching.block_manager import BlockManager, computes_prefix_of
from fedlora_serve.batching.fair_queue import FairQueue, rows_by_share
from fedlora_serve.batching.fair_time import FairTime
from fedlora_serve.batching.kv_cache import KVCache, blocks_of
from fedlora_serve.batching.request import FinishReason
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.rows import Rows
from fedlora_serve.batching.sequence import SequenceState, failure_message

_ALONE_TOKENS = 512  # of prompts in a step, where no sequence waits for it
_MAX_GAP = 1  # rows that only stand between, where not everybody takes part: they cost a step what others do


class Scheduler:
    """Takes sequences in, and takes them further step by step until they end. One thread at a time."""

    def __init__(
        self,
        graph: RowGraph,
        kv_cache: KVCache,
        *,
        rows: int,
        budget_blocks: int,
        prefill_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.blocks = BlockManager(kv_cache, budget_blocks)
        self.preempted: list[SequenceState] = []  # who had to leave, and has to come back: the newest first
        self._rows = Rows(kv_cache, graph.adapters)
        self._graph, self._capacity = graph, kv_cache.capacity
        self._max_rows, self._prefill_tokens = rows, prefill_tokens
        self._oldest_first = cycle((True, False))
        self._time, self._clock = FairTime(clock), clock
        self._has_given_way = False  # in the last step, to somebody who had come

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

    def step(self, has_come: Callable[[], bool] = lambda: False) -> None:
        """Read a part of some prompts, and take every sequence that decodes and is due one token further.

        Where `has_come()`, once the prompts were read, somebody waits who is to be let in first, the second is left out.
        """
        due = self._time.due(self.sequences)
        # Not twice: who waits for somebody else's row comes in when those that decode have gone on.
        self._has_given_way = self._prefill(due) and not self._has_given_way and has_come()
        if not self._has_given_way:
            self._decode(due)

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

    def _prefill(self, due: Collection[SequenceState]) -> bool:
        """Whether there was a prompt to read."""
        rows = self._rows_to_prefill(due)
        if not rows:
            return False
        is_alone = not self._time.is_shared and not any(sequence.is_decoding for sequence in due)
        token_budget = max(_ALONE_TOKENS, self._prefill_tokens) if is_alone else self._prefill_tokens
        shortest = min(rows, key=lambda row: self.sequences[row].uncomputed_tokens)
        first = rows[0] if next(self._oldest_first) else shortest
        parts: list[Part] = []
        width = 0  # every part is filled up to the widest, which must fit its row
        for row in range(first, len(self.sequences)):
            sequence = self.sequences[row]
            free = self._capacity - max([sequence.row_length, *(part.length for part in parts)])
            most = min(token_budget // (len(parts) + 1), free)
            if row not in rows or most < max(width, 1):
                break
            end = sequence.length + min(sequence.uncomputed_tokens, most)
            parts.append(Part(sequence.tokens[sequence.length : end], sequence.row_length, sequence.adapter))
            width = max(width, end - sequence.length)
        self._run(first, parts)
        return True

    def _rows_to_prefill(self, due: Collection[SequenceState]) -> list[int]:
        """The rows with a prompt to read that are due, the oldest first.

        Who begins like an older one begins later: it finds what that one is about to read.
        """
        unread = [row for row, each in enumerate(self.sequences) if each in due and not each.is_decoding]
        unread.sort(key=lambda row: self.sequences[row].number)
        for place, row in enumerate(unread):
            sequence = self.sequences[row]
            older = [self.sequences[each] for each in unread[:place]]
            if not (sequence.has_begun or any(computes_prefix_of(each, sequence) for each in older)):
                self.blocks.load_prefix(row, sequence)
        return [row for row in unread if self.sequences[row].has_begun and not self.sequences[row].is_decoding]

    def _decode(self, due: Collection[SequenceState]) -> None:
        while any(not self.blocks.grow(row, self.sequences[row].row_length + 1) for row in self._rows_that_decode(due)):
            self._preempt(max(self.sequences, key=self._by_rows))
        everybody = len(due) == len(self.sequences)
        # The last rows first: who takes over the row of one that has ended comes from behind it.
        for rows in reversed(
            [*_neighbours(self._rows_that_decode(due), len(self.sequences) if everybody else _MAX_GAP)]
        ):
            first = 0 if everybody else rows[0]
            decoding = {self.sequences[row] for row in rows}
            self._run(
                first,
                [
                    Part(each.tokens[-1:] if each in decoding else (), each.row_length, each.adapter)
                    for each in self.sequences[first : rows[-1] + 1]
                ],
            )

    def _rows_that_decode(self, due: Collection[SequenceState]) -> list[int]:
        return [row for row, each in enumerate(self.sequences) if each in due and each.is_decoding]

    def _has_place_for(self, sequence: SequenceState) -> bool:
        if len(self.sequences) == self._max_rows:
            return False
        return self.blocks.make_room(blocks_of(sequence.row_tokens) + len(self.sequences))

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
        sequences, began = self.sequences[first : first + len(parts)], self._clock()
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
        read = Counter[str]()
        for sequence, part in zip(sequences, parts, strict=True):
            read[sequence.request.share] += len(part.tokens)
        self._time.took(self._clock() - began, read)
        self._end_each(ended)

    def _end_each(self, ended: Sequence[tuple[SequenceState, FinishReason, str]]) -> None:
        """The last rows first: what takes over a row is then never one that has ended."""
        for sequence, reason, message in reversed(ended):
            self.end(sequence, reason, message)


def _neighbours(rows: Sequence[int], max_gap: int) -> Iterator[list[int]]:
    """Rows in ascending order in runs, between whose rows are no more than `max_gap` others."""
    run: list[int] = []
    for row in rows:
        if run and row - run[-1] > max_gap + 1:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _next_token(sequence: SequenceState, scores: NDArray[np.float32]) -> tuple[FinishReason | None, str]:  # [V]
    """Choose it; why the sequence ends with it, if it does, and what went wrong."""
    if not np.isfinite(scores.sum(dtype=np.float64)):
        culprit = f"with adapter {sequence.adapter.name} " if sequence.adapter else ""
        return "error", f"{culprit}the scores of the next token are not finite: its values are too large"
    try:
        return sequence.take(scores), ""
    except Exception as error:  # no reason to end the others' sequences
        return "error", failure_message(error)
