"""The rows of the batch: who joins, what each step reads, who leaves, and the memory that they share.

A step reads a part of the prompts that have just come, then one token of every answer that is going on, so that a long
prompt delays the others by one part at a time. Rows that go on stand wherever they are: those between them read nothing.

Memory is counted in blocks of tokens. What is free is given back first, then prefixes that nobody needs just now; where
that does not suffice, the answer that joined last is set back: it waits, and reads what it had again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

import numpy as np
from fedlora.errors import AdapterError, FedloraError
from numpy.typing import NDArray

from fedlora_serve.batching.answer import Answer
from fedlora_serve.batching.key_values import BLOCK_TOKENS, KeyValues, blocks_of
from fedlora_serve.batching.prefix_cache import PrefixCache
from fedlora_serve.batching.request import FinishReason
from fedlora_serve.batching.row_graph import Part, RowGraph

_ALONE_TOKENS = 512  # of prompts in a step, where no answer waits for it


class Batch:
    """Answers that are being made, one a row, from row 0 on. One thread at a time."""

    def __init__(
        self,
        graph: RowGraph,
        key_values: KeyValues,
        waiting: deque[Answer],  # those who want to join, the first ones first
        *,
        rows: int,
        budget_blocks: int,
        prefill_tokens: int,
    ) -> None:
        self.answers: list[Answer] = []
        self._waiting = waiting
        self.prefixes = PrefixCache()
        self._graph, self._key_values = graph, key_values
        self._rows, self._budget_blocks, self._prefill_tokens = rows, budget_blocks, prefill_tokens
        self._numbers = count()

    @property
    def blocks(self) -> int:
        """What rows and prefixes take."""
        return sum(self._key_values.blocks) + len(self.prefixes)

    def admit(self) -> None:
        """Let those in who came first, as long as there is a row and memory for what they have to read."""
        while self._waiting and len(self.answers) < self._rows:
            answer, row = self._waiting[0], len(self.answers)
            if not self._grow(row, len(answer.tokens)):
                return
            self._waiting.popleft()
            try:
                if answer.adapter:
                    self._graph.adapters.join(answer.adapter)
            except AdapterError as error:
                answer.end("error", str(error))
                continue
            answer.number = next(self._numbers)
            self.answers.append(answer)

    def step(self) -> None:
        """Read a part of the newest prompts, and take one token further every answer that is going on."""
        self._read_prompts()
        self._go_on()

    def end(self, answer: Answer, reason: FinishReason, message: str = "") -> None:
        """End an answer of the batch, and free its row."""
        if reason in ("stop", "length"):
            self._keep_prefix(answer)
        self._leave(answer)
        answer.end(reason, message)

    def rest(self) -> None:
        """Nobody is here: give back the memory of all rows."""
        for row in range(self._rows):
            self._key_values.release(row)

    def _read_prompts(self) -> None:
        first = next((row for row, answer in enumerate(self.answers) if not answer.is_going_on), None)
        if first is None:
            return
        is_alone = not any(answer.is_going_on for answer in self.answers)
        most = max(_ALONE_TOKENS, self._prefill_tokens) if is_alone else self._prefill_tokens
        parts: list[Part] = []
        for row in range(first, len(self.answers)):
            answer = self.answers[row]
            if answer.is_going_on or any(_begin_alike(answer, other) for other in self.answers[first:row]):
                break  # who begins alike finds in the next step what is read in this one
            if not answer.length:
                self._use_prefix(row, answer)
            end = answer.length + min(answer.missing, most)
            width = max([end - answer.length, *(len(part.tokens) for part in parts)])
            if parts and (len(parts) + 1) * width > most:  # shorter ones are filled up to the longest
                break
            parts.append(Part(answer.tokens[answer.length : end], answer.length, answer.adapter))
        self._run(first, parts)

    def _go_on(self) -> None:
        while any(
            answer.is_going_on and not self._grow(row, answer.length + 1) for row, answer in enumerate(self.answers)
        ):
            self._set_back(max(self.answers, key=lambda answer: answer.number))
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
        if answer.is_prompt_only:
            self._keep_prefix(answer)
        return answer.take(scores), ""

    def _use_prefix(self, row: int, answer: Answer) -> None:
        blocks = self.prefixes.find(answer.digest, answer.tokens)
        for number, block in enumerate(blocks):
            self._key_values.write_block(row, number, block)
        answer.length = len(blocks) * BLOCK_TOKENS
        answer.cached_tokens = max(answer.cached_tokens, min(answer.length, len(answer.request.prompt)))

    def _keep_prefix(self, answer: Answer) -> None:
        row = self.answers.index(answer)
        self.prefixes.keep(
            answer.digest,
            answer.tokens[: answer.length],
            lambda number: self._key_values.read_block(row, number),
            lambda: self._make_room(1),
        )

    def _grow(self, row: int, tokens: int) -> bool:
        """Count memory for so many tokens of a row; whether there is any."""
        more = blocks_of(tokens) - self._key_values.blocks[row]
        if more > 0 and not self._make_room(more, besides=row):
            return False
        self._key_values.grow(row, tokens)
        return True

    def _make_room(self, blocks: int, *, besides: int | None = None) -> bool:
        """Give back what free rows besides one and prefixes have, as long as `blocks` more do not fit; whether they do."""
        free = [row for row in range(len(self.answers), self._rows) if row != besides]
        while self.blocks + blocks > self._budget_blocks:
            if free:
                self._key_values.release(free.pop())
            elif not self.prefixes.forget_one():
                return False
        return True

    def _set_back(self, answer: Answer) -> None:
        self._keep_prefix(answer)
        self._leave(answer)
        answer.length = 0
        self._waiting.appendleft(answer)

    def _leave(self, answer: Answer) -> None:
        """Free its row, which the last one takes over. Where there is no room to copy that one, it is set back."""
        row = self.answers.index(answer)
        while (last := self.answers[-1]) is not answer and not self._grow(row, len(last.tokens)):
            self._set_back(last)
        if last is not answer:
            self._key_values.move(len(self.answers) - 1, row, last.length)
            self.answers[row] = last
        self.answers.pop()
        if answer.adapter:
            self._graph.adapters.leave(answer.adapter)


def _begin_alike(one: Answer, other: Answer) -> bool:
    return (
        not one.length
        and not other.is_going_on
        and one.digest == other.digest
        and len(one.tokens) > BLOCK_TOKENS
        and one.tokens[:BLOCK_TOKENS] == other.tokens[:BLOCK_TOKENS]
    )
