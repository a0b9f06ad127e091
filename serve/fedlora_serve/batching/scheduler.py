"""The rows of the batch: who joins, what each step reads, who leaves, and the memory that they share.

A step reads a part of the prompts that are here, then one token of every answer that is going on, so that a long prompt
delays the others by one part at a time. The oldest prompt and the shortest take turns: a long one holds up no short ones,
and short ones do not hold up a long one. Rows that go on stand wherever they are: those between them read nothing.

Memory is counted in blocks of tokens. Prefixes that nobody needs just now go first; where that does not suffice, the answer
that joined last is set back: it waits, and reads what it had again.
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
from fedlora_serve.batching.sequence import Answer, failure_message

_ALONE_TOKENS = 512  # of prompts in a step, where no answer waits for it


class Batch:
    """Answers that are being made, one a row, from row 0 on. One thread at a time."""

    def __init__(
        self, graph: RowGraph, kv_cache: KVCache, *, rows: int, budget_blocks: int, prefill_tokens: int
    ) -> None:
        self.answers: list[Answer] = []
        self.set_back: list[Answer] = []  # who had to leave, and has to come back before others: the newest first
        self.prefixes = PrefixCache()
        self._graph, self._kv_cache = graph, kv_cache
        self._rows, self._budget_blocks, self._prefill_tokens = rows, budget_blocks, prefill_tokens
        self._numbers = count()
        self._oldest_first = cycle((True, False))

    @property
    def blocks(self) -> int:
        """What rows and prefixes take."""
        return sum(self._kv_cache.blocks) + len(self.prefixes)

    def admit(self, waiting: deque[Answer]) -> None:
        """Let those in who came first, as long as there is a row and memory for what they have to read.

        Every answer that is here has a block to grow by, lest who comes in is set back at once.
        """
        while waiting and len(self.answers) < self._rows:
            answer, row = waiting[0], len(self.answers)
            if not self._make_room(blocks_of(len(answer.tokens)) + len(self.answers)):
                return
            waiting.popleft()
            try:
                if answer.adapter:
                    self._graph.adapters.join(answer.adapter)
            except Exception as error:  # it is in no list now, and must be told here
                answer.end("error", failure_message(error))
                continue
            self._kv_cache.grow(row, len(answer.tokens))
            answer.number = next(self._numbers)
            self.answers.append(answer)

    def step(self) -> None:
        """Read a part of some prompts, and take one token further every answer that is going on."""
        self._read_prompts()
        self._go_on()

    def end(self, answer: Answer, reason: FinishReason, message: str = "") -> None:
        """End an answer of the batch, and free its row."""
        if reason in ("stop", "length"):
            self._keep_prefix(answer)
        self._leave(answer)
        answer.end(reason, message)

    def end_all(self, message: str) -> None:
        """Whatever state they are in: end every answer of the batch with an error, and free its row."""
        answers, self.answers = self.answers, []
        for row, answer in enumerate(answers):
            self._kv_cache.release(row)
            if answer.adapter:
                self._graph.adapters.leave(answer.adapter)
            answer.end("error", message)

    def _read_prompts(self) -> None:
        rows = self._rows_to_read()
        if not rows:
            return
        is_alone = not any(answer.is_going_on for answer in self.answers)
        most = max(_ALONE_TOKENS, self._prefill_tokens) if is_alone else self._prefill_tokens
        first = rows[0] if next(self._oldest_first) else min(rows, key=lambda row: self.answers[row].missing)
        parts: list[Part] = []
        width, capacity = 0, self._kv_cache.capacity  # every part is filled up to the widest, which must fit its row
        for row in range(first, len(self.answers)):
            answer = self.answers[row]
            room = min(most // (len(parts) + 1), capacity - max([answer.length, *(part.length for part in parts)]))
            if row not in rows or room < max(width, 1):
                break
            end = answer.length + min(answer.missing, room)
            parts.append(Part(answer.tokens[answer.length : end], answer.length, answer.adapter))
            width = max(width, end - answer.length)
        self._run(first, parts)

    def _rows_to_read(self) -> list[int]:
        """The rows with a prompt to read, the oldest first.

        Who begins like an older one begins later: it finds what that one is about to read.
        """
        unread = [row for row, answer in enumerate(self.answers) if not answer.is_going_on]
        unread.sort(key=lambda row: self.answers[row].number)
        for place, row in enumerate(unread):
            answer = self.answers[row]
            if not (answer.has_begun or any(_reads_for(self.answers[older], answer) for older in unread[:place])):
                self._use_prefix(row, answer)
        return [row for row in unread if self.answers[row].has_begun and not self.answers[row].is_going_on]

    def _go_on(self) -> None:
        while any(
            answer.is_going_on and not self._grow(row, answer.length + 1) for row, answer in enumerate(self.answers)
        ):
            newest = max(self.answers, key=lambda answer: answer.number)
            self._leave(newest)
            newest.length, newest.has_begun = 0, False
            self.set_back.append(newest)
        last = max((row for row, answer in enumerate(self.answers) if answer.is_going_on), default=-1)
        self._run(
            0,
            [
                Part(answer.tokens[-1:] if answer.is_going_on else (), answer.length, answer.adapter)
                for answer in self.answers[: last + 1]
            ],
        )

    def _run(self, first: int, parts: Sequence[Part]) -> None:
        """One step over the rows from `first` on; answers whose tokens are all read get one more, and may end with it."""
        if not parts:
            return
        answers = self.answers[first : first + len(parts)]
        try:
            scores = self._graph.step(first, parts)
        except FedloraError as error:
            self._end_all(
                [(answer, "error", str(error)) for answer, part in zip(answers, parts, strict=True) if part.tokens]
            )
            return
        ended: list[tuple[Answer, FinishReason, str]] = []
        for row, (answer, part) in enumerate(zip(answers, parts, strict=True)):
            answer.length += len(part.tokens)
            if part.tokens and answer.is_prompt_only:
                self._keep_prefix(answer)
            if part.tokens and not answer.missing:
                reason, message = self._taken(answer, scores[row])
                if reason:
                    ended.append((answer, reason, message))
        self._end_all(ended)

    def _end_all(self, ended: Sequence[tuple[Answer, FinishReason, str]]) -> None:
        """The last rows first: what takes over a row is then never one that has ended."""
        for answer, reason, message in reversed(ended):
            self.end(answer, reason, message)

    def _taken(self, answer: Answer, scores: NDArray[np.float32]) -> tuple[FinishReason | None, str]:
        if not np.isfinite(scores.sum(dtype=np.float64)):
            culprit = f"with adapter {answer.adapter.name} " if answer.adapter else ""
            return "error", f"{culprit}the scores of the next token are not finite: its values are too large"
        try:
            return answer.take(scores), ""
        except Exception as error:  # no reason to end the others' answers
            return "error", failure_message(error)

    def _use_prefix(self, row: int, answer: Answer) -> None:
        blocks = self.prefixes.find(answer.digest, answer.tokens)
        for number, block in enumerate(blocks):
            self._kv_cache.write_block(row, number, block)
        answer.length, answer.has_begun = len(blocks) * BLOCK_TOKENS, True
        if answer.is_prompt_only:
            answer.cached_tokens = answer.length

    def _keep_prefix(self, answer: Answer) -> None:
        row = self.answers.index(answer)
        self.prefixes.keep(
            answer.digest,
            answer.tokens[: answer.length],
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

    def _leave(self, answer: Answer) -> None:
        """Free its row; others close the gap."""
        hole = self.answers.index(answer)
        for row in self._next_rows(hole):
            self._kv_cache.move(row, hole, self.answers[row].length)
            self.answers[hole], hole = self.answers[row], row
        self._kv_cache.release(hole)
        self.answers.pop()
        if answer.adapter:
            self._graph.adapters.leave(answer.adapter)

    def _next_rows(self, hole: int) -> list[int]:
        """Who moves up when a row is free, each to the place of the one before: at last the last one.

        Those that go on stay side by side, and the oldest prompt next to them: who stands between costs every step a token.
        """
        last = len(self.answers) - 1
        going_on = max((row for row in range(hole + 1, last + 1) if self.answers[row].is_going_on), default=hole)
        prompts = range(going_on + 1, last + 1)
        oldest = min(prompts, key=lambda row: self.answers[row].number, default=going_on)
        return [row for row, before in ((going_on, hole), (oldest, going_on), (last, oldest)) if row > before]


def _reads_for(older: Answer, answer: Answer) -> bool:
    """Whether an answer that has not begun to read will find the next block that an older one reads."""
    end = (older.length // BLOCK_TOKENS + 1) * BLOCK_TOKENS
    return (
        end <= len(older.tokens)
        and end < len(answer.tokens)
        and older.digest == answer.digest
        and older.tokens[:end] == answer.tokens[:end]
    )
