"""The rows of the batch: who joins, what each step reads, who leaves, and the memory that they share.

A step reads a part of the prompts that are here, then one token of every sequence that decodes, so that a long prompt
delays the others by one part at a time. The oldest prompt and the shortest take turns: a long one holds up no short ones,
and short ones do not hold up a long one. Rows that decode stand wherever they are: those between them read nothing.

Memory is counted in blocks of tokens. Prefixes that nobody needs just now go first; where that does not suffice, the
sequence that joined last is preempted: it waits, and reads what it had again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count, cycle

import numpy as np
from fedlora.errors import FedloraError
from numpy.typing import NDArray

from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, KVCache, blocks_of
from fedlora_serve.batching.prefix_cache import PrefixCache
from fedlora_serve.batching.request import FinishReason
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.sequence import SequenceState, failure_message

_ALONE_TOKENS = 512  # of prompts in a step, where no sequence waits for it


class Batch:
    """Sequences on their way, one a row, from row 0 on. One thread at a time."""

    def __init__(
        self, graph: RowGraph, kv_cache: KVCache, *, rows: int, budget_blocks: int, prefill_tokens: int
    ) -> None:
        self.sequences: list[SequenceState] = []
        # Who had to leave, and has to come back before others: the newest first.
        self.preempted: list[SequenceState] = []
        self.prefixes = PrefixCache()
        self._graph, self._kv_cache = graph, kv_cache
        self._rows, self._budget_blocks, self._prefill_tokens = rows, budget_blocks, prefill_tokens
        self._numbers = count()
        self._oldest_first = cycle((True, False))

    @property
    def blocks(self) -> int:
        """What rows and prefixes take."""
        return sum(self._kv_cache.blocks) + len(self.prefixes)

    def admit(self, waiting: deque[SequenceState]) -> None:
        """Let those in who came first, as long as there is a row and memory for what they have to read.

        Every sequence that is here has a block to grow by, lest who comes in is preempted at once.
        """
        while waiting and len(self.sequences) < self._rows:
            sequence, row = waiting[0], len(self.sequences)
            if not self._make_room(blocks_of(len(sequence.tokens)) + len(self.sequences)):
                return
            waiting.popleft()
            try:
                if sequence.adapter:
                    self._graph.adapters.join(sequence.adapter)
            except Exception as error:  # it is in no list now, and must be told here
                sequence.end("error", failure_message(error))
                continue
            self._kv_cache.grow(row, len(sequence.tokens))
            sequence.number = next(self._numbers)
            self.sequences.append(sequence)

    def step(self) -> None:
        """Read a part of some prompts, and take every sequence that decodes one token further."""
        self._prefill()
        self._decode()

    def end(self, sequence: SequenceState, reason: FinishReason, message: str = "") -> None:
        """End a sequence of the batch, and free its row."""
        if reason in ("stop", "length"):
            self._keep_prefix(sequence)
        self._leave(sequence)
        sequence.end(reason, message)

    def end_all(self, message: str) -> None:
        """Whatever state they are in: end every sequence of the batch with an error, and free its row."""
        sequences, self.sequences = self.sequences, []
        for row, sequence in enumerate(sequences):
            self._kv_cache.release(row)
            if sequence.adapter:
                self._graph.adapters.leave(sequence.adapter)
            sequence.end("error", message)

    def _prefill(self) -> None:
        rows = self._rows_to_read()
        if not rows:
            return
        is_alone = not any(sequence.is_decoding for sequence in self.sequences)
        most = max(_ALONE_TOKENS, self._prefill_tokens) if is_alone else self._prefill_tokens
        first = (
            rows[0] if next(self._oldest_first) else min(rows, key=lambda row: self.sequences[row].uncomputed_tokens)
        )
        parts: list[Part] = []
        width, capacity = 0, self._kv_cache.capacity  # every part is filled up to the widest, which must fit its row
        for row in range(first, len(self.sequences)):
            sequence = self.sequences[row]
            room = min(most // (len(parts) + 1), capacity - max([sequence.length, *(part.length for part in parts)]))
            if row not in rows or room < max(width, 1):
                break
            end = sequence.length + min(sequence.uncomputed_tokens, room)
            parts.append(Part(sequence.tokens[sequence.length : end], sequence.length, sequence.adapter))
            width = max(width, end - sequence.length)
        self._run(first, parts)

    def _rows_to_read(self) -> list[int]:
        """The rows with a prompt to read, the oldest first.

        Who begins like an older one begins later: it finds what that one is about to read.
        """
        unread = [row for row, sequence in enumerate(self.sequences) if not sequence.is_decoding]
        unread.sort(key=lambda row: self.sequences[row].number)
        for place, row in enumerate(unread):
            sequence = self.sequences[row]
            if not (sequence.has_begun or any(_reads_for(self.sequences[older], sequence) for older in unread[:place])):
                self._use_prefix(row, sequence)
        return [row for row in unread if self.sequences[row].has_begun and not self.sequences[row].is_decoding]

    def _decode(self) -> None:
        while any(
            sequence.is_decoding and not self._grow(row, sequence.length + 1)
            for row, sequence in enumerate(self.sequences)
        ):
            newest = max(self.sequences, key=lambda sequence: sequence.number)
            self._leave(newest)
            newest.length, newest.has_begun = 0, False
            self.preempted.append(newest)
        last = max((row for row, sequence in enumerate(self.sequences) if sequence.is_decoding), default=-1)
        self._run(
            0,
            [
                Part(sequence.tokens[-1:] if sequence.is_decoding else (), sequence.length, sequence.adapter)
                for sequence in self.sequences[: last + 1]
            ],
        )

    def _run(self, first: int, parts: Sequence[Part]) -> None:
        """One step over the rows from `first` on; sequences whose tokens are all read get one more, and may end with it."""
        if not parts:
            return
        sequences = self.sequences[first : first + len(parts)]
        try:
            scores = self._graph.step(first, parts)
        except FedloraError as error:
            self._end_all(
                [
                    (sequence, "error", str(error))
                    for sequence, part in zip(sequences, parts, strict=True)
                    if part.tokens
                ]
            )
            return
        ended: list[tuple[SequenceState, FinishReason, str]] = []
        for row, (sequence, part) in enumerate(zip(sequences, parts, strict=True)):
            sequence.length += len(part.tokens)
            if part.tokens and sequence.is_prompt_only:
                self._keep_prefix(sequence)
            if part.tokens and not sequence.uncomputed_tokens:
                reason, message = self._taken(sequence, scores[row])
                if reason:
                    ended.append((sequence, reason, message))
        self._end_all(ended)

    def _end_all(self, ended: Sequence[tuple[SequenceState, FinishReason, str]]) -> None:
        """The last rows first: what takes over a row is then never one that has ended."""
        for sequence, reason, message in reversed(ended):
            self.end(sequence, reason, message)

    def _taken(self, sequence: SequenceState, scores: NDArray[np.float32]) -> tuple[FinishReason | None, str]:
        if not np.isfinite(scores.sum(dtype=np.float64)):
            culprit = f"with adapter {sequence.adapter.name} " if sequence.adapter else ""
            return "error", f"{culprit}the scores of the next token are not finite: its values are too large"
        try:
            return sequence.take(scores), ""
        except Exception as error:  # no reason to end the others' sequences
            return "error", failure_message(error)

    def _use_prefix(self, row: int, sequence: SequenceState) -> None:
        blocks = self.prefixes.find(sequence.digest, sequence.tokens)
        for number, block in enumerate(blocks):
            self._kv_cache.write_block(row, number, block)
        sequence.length, sequence.has_begun = len(blocks) * BLOCK_TOKENS, True
        if sequence.is_prompt_only:
            sequence.cached_tokens = sequence.length

    def _keep_prefix(self, sequence: SequenceState) -> None:
        row = self.sequences.index(sequence)
        self.prefixes.keep(
            sequence.digest,
            sequence.tokens[: sequence.length],
            lambda number: self._kv_cache.read_block(row, number),
            lambda: self._make_room(1),
        )

    def _grow(self, row: int, tokens: int) -> bool:
        """Count memory for so many tokens of a row; whether there is any."""
        more = blocks_of(tokens) - self._kv_cache.blocks[row]
        if more > 0 and not self._make_room(more):
            return False
        self._kv_cache.grow(row, tokens)
        return True

    def _make_room(self, blocks: int) -> bool:
        """Drop prefixes until `blocks` more fit; none where they would not fit even so. Whether they do."""
        if sum(self._kv_cache.blocks) + blocks > self._budget_blocks:
            return False
        while self.blocks + blocks > self._budget_blocks:
            if not self.prefixes.forget_one():
                return False
        return True

    def _leave(self, sequence: SequenceState) -> None:
        """Free its row; others close the gap."""
        hole = self.sequences.index(sequence)
        for row in self._next_rows(hole):
            self._kv_cache.move(row, hole, self.sequences[row].length)
            self.sequences[hole], hole = self.sequences[row], row
        self._kv_cache.release(hole)
        self.sequences.pop()
        if sequence.adapter:
            self._graph.adapters.leave(sequence.adapter)

    def _next_rows(self, hole: int) -> list[int]:
        """Who moves up when a row is free, each to the place of the one before: at last the last one.

        Those that decode stay side by side, and the oldest prompt next to them: who stands between costs every step a token.
        """
        last = len(self.sequences) - 1
        decoding = max((row for row in range(hole + 1, last + 1) if self.sequences[row].is_decoding), default=hole)
        prompts = range(decoding + 1, last + 1)
        oldest = min(prompts, key=lambda row: self.sequences[row].number, default=decoding)
        return [row for row, before in ((decoding, hole), (oldest, decoding), (last, oldest)) if row > before]


def _reads_for(older: SequenceState, sequence: SequenceState) -> bool:
    """Whether a sequence that has not begun to read will find the next block that an older one reads."""
    end = (older.length // BLOCK_TOKENS + 1) * BLOCK_TOKENS
    return (
        end <= len(older.tokens)
        and end < len(sequence.tokens)
        and older.digest == sequence.digest
        and older.tokens[:end] == sequence.tokens[:end]
    )
