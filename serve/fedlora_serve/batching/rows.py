"""The rows of the batch: one sequence each, side by side from row 0 on, whoever joins and leaves.

The adapters of a step's rows reach the graph by number, to where their values lie, or copied side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.exported.inputs import row_values
from fedlora.row_lora.layout import AdapterLayout
from fedlora.row_lora.library import RowLora
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import AdapterValues, LoadedAdapter
from fedlora_serve.batching.kv_cache import KVCache
from fedlora_serve.batching.sequence import SequenceState

_KEPT = 2  # sets of copies


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
        self._kv_cache.grow(len(self.sequences), sequence.row_tokens)
        sequence.number = next(self._numbers)
        self.sequences.append(sequence)

    def leave(self, sequence: SequenceState) -> None:
        """Free its row; others close the gap."""
        hole = self.sequences.index(sequence)
        for row in self._next_rows(hole):
            self._kv_cache.move(row, hole, self.sequences[row].row_length)
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


class RowAdapters(Protocol):
    """The adapters of the rows of a batch."""

    def join(self, adapter: LoadedAdapter) -> None:
        """A row with this adapter begins. Raises AdapterError where there is no room, or it is for another graph."""
        ...

    def leave(self, adapter: LoadedAdapter) -> None:
        """A row with this adapter has ended."""
        ...

    def feeds(self, adapters: Sequence[LoadedAdapter | None]) -> Mapping[str, NDArray[Any]]:
        """The adapter inputs of a step, by the adapter of each row."""
        ...


class NumberedAdapters:
    """For the graph `kernel`: nothing is copied, whatever the ranks, and however many adapters a row has."""

    def __init__(self, library: RowLora) -> None:
        self._library = library
        self._numbers: dict[str, int] = {}  # by digest
        self._rows: dict[str, int] = {}  # that use it

    def join(self, adapter: LoadedAdapter) -> None:
        if adapter.prefix is not None:
            return  # its row begins with it, and the graph knows nothing of it
        if adapter.digest not in self._numbers:
            self._numbers[adapter.digest] = self._number_of(adapter.name, adapter.values)
        self._rows[adapter.digest] = self._rows.get(adapter.digest, 0) + 1

    def leave(self, adapter: LoadedAdapter) -> None:
        if adapter.prefix is not None:
            return
        self._rows[adapter.digest] -= 1
        if not self._rows[adapter.digest]:
            del self._rows[adapter.digest]
            self._library.remove(self._numbers.pop(adapter.digest))

    def _number_of(self, name: str, values: AdapterValues) -> int:
        if isinstance(values, AdapterLayout):
            return self._library.add(values)
        if not isinstance(values, tuple):
            raise AdapterMismatchError(
                f"{name}: not laid out for the graph kernel; load it with a layout, such as float32"
            )
        joined: list[LoadedAdapter] = []
        try:
            for part in values:
                self.join(part.adapter)
                joined.append(part.adapter)
            numbers = [self._numbers[part.adapter.digest] for part in values]
            return self._library.combine(numbers, [part.weight for part in values])
        finally:  # the sum keeps their layouts
            for each in joined:
                self.leave(each)

    def feeds(self, adapters: Sequence[LoadedAdapter | None]) -> Mapping[str, NDArray[Any]]:
        numbers = [self._numbers[each.digest] if each and each.prefix is None else 0 for each in adapters]
        return {"adapters": np.array(numbers, np.int64)}


class CopiedAdapters:
    """For the graph `rows`, which any ONNX Runtime runs: copied when the rows change, filled up to the largest rank."""

    def __init__(
        self, modules: Mapping[str, tuple[int, int]], scales: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        """`modules`: {name: (O, I)}; `scales`: {input: shape} of what the graph takes to scale modules."""
        self._modules, self._scales = modules, scales or {}
        # Of the last rows of each kind: where prompts are read, those of the prompts and those that decode take turns.
        self._kept: OrderedDict[tuple[str, ...], Mapping[str, NDArray[np.float32]]] = OrderedDict()

    def join(self, adapter: LoadedAdapter) -> None:
        for part in adapter.parts:
            if isinstance(part.adapter.values, AdapterLayout):
                raise AdapterError(f"{part.adapter.name}: laid out for another graph; load it again")
            if part.adapter.scales and not self._scales:  # in a step it would end the others' sequences too
                raise AdapterMismatchError(
                    f"{part.adapter.name}: it scales what modules give (DoRA, IA3), and the graph has no inputs for that; "
                    "write it again with: fedlora export BASE --profile rows --output-scales"
                )

    def leave(self, adapter: LoadedAdapter) -> None:
        pass

    def feeds(self, adapters: Sequence[LoadedAdapter | None]) -> Mapping[str, NDArray[Any]]:
        digests = tuple(each.digest if each and each.prefix is None else "" for each in adapters)
        if digests not in self._kept:
            while len(self._kept) >= _KEPT:  # before there are new ones: copies are large
                self._kept.popitem(last=False)
            adapter_inputs = [adapter.inputs if adapter else {} for adapter in adapters]
            self._kept[digests] = row_values(adapter_inputs, self._modules, self._scales)
        self._kept.move_to_end(digests)
        return self._kept[digests]
