"""The rows of the batch: one sequence each, side by side from row 0 on, whoever joins and leaves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from fedlora_serve.batching.kv_cache import KVCache
from fedlora_serve.batching.row_adapters import RowAdapters
from fedlora_serve.batching.sequence import SequenceState


class Rows:
    """Sequence i has row i of the KV cache; its adapter is held as long. One thread at a time."""

    def __init__(self, kv_cache: KVCache, adapters: RowAdapters) -> None:
        self.sequences: list[SequenceState] = []
        self._kv_cache, self._adapters = kv_cache, adapters
        self._numbers = count()

    def join(self, sequence: SequenceState) -> None:
        """Give a sequence the next row, and count the memory of its tokens. Raises what its adapter raises."""
        if sequence.adapter:
            self._adapters.join(sequence.adapter)
        self._kv_cache.grow(len(self.sequences), len(sequence.tokens))
        sequence.number = next(self._numbers)
        self.sequences.append(sequence)

    def leave(self, sequence: SequenceState) -> None:
        """Free its row; others close the gap."""
        hole = self.sequences.index(sequence)
        for row in self._next_rows(hole):
            self._kv_cache.move(row, hole, self.sequences[row].length)
            self.sequences[hole], hole = self.sequences[row], row
        self._kv_cache.release(hole)
        self.sequences.pop()
        if sequence.adapter:
            self._adapters.leave(sequence.adapter)

    def clear(self) -> Iterator[SequenceState]:
        """Whatever state they are in: free all rows, and give each sequence once its row is free."""
        sequences, self.sequences = self.sequences, []
        for row, sequence in enumerate(sequences):
            self._kv_cache.release(row)
            if sequence.adapter:
                self._adapters.leave(sequence.adapter)
            yield sequence

    def _next_rows(self, hole: int) -> list[int]:
        """Who moves up when a row is free, each to the place of the one before: at last the last one.

        Those that decode stay side by side, and the oldest prompt next to them: who stands between costs every step a
        token.
        """
        last = len(self.sequences) - 1
        decoding = max((row for row in range(hole + 1, last + 1) if self.sequences[row].is_decoding), default=hole)
        prompts = range(decoding + 1, last + 1)
        oldest = min(prompts, key=lambda row: self.sequences[row].number, default=decoding)
        return [row for row, before in ((decoding, hole), (oldest, decoding), (last, oldest)) if row > before]
