"""How the adapters of a step's rows reach the graph: by number, to where their values lie, or copied side by side."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from fedlora.errors import AdapterError
from fedlora.exported.inputs import row_values
from fedlora.row_lora.layout import AdapterLayout
from fedlora.row_lora.library import RowLora
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter

_KEPT = 2  # sets of copies


class RowAdapters(Protocol):
    """The adapters of the rows of a batch."""

    def join(self, adapter: LoadedAdapter) -> None:
        """A row with this adapter begins. Raises AdapterError where there is no room for more."""
        ...

    def leave(self, adapter: LoadedAdapter) -> None:
        """A row with this adapter has ended."""
        ...

    def feeds(self, adapters: Sequence[LoadedAdapter | None]) -> Mapping[str, NDArray[Any]]:
        """The adapter inputs of a step, by the adapter of each row."""
        ...


class NumberedAdapters:
    """For the graph `kernel`: nothing is copied, whatever the ranks."""

    def __init__(self, library: RowLora) -> None:
        self._library = library
        self._numbers: dict[str, int] = {}  # by digest
        self._rows: dict[str, int] = {}  # that use it

    def join(self, adapter: LoadedAdapter) -> None:
        if adapter.digest not in self._numbers:
            assert isinstance(adapter.values, AdapterLayout)
            self._numbers[adapter.digest] = self._library.add(adapter.values)
        self._rows[adapter.digest] = self._rows.get(adapter.digest, 0) + 1

    def leave(self, adapter: LoadedAdapter) -> None:
        self._rows[adapter.digest] -= 1
        if not self._rows[adapter.digest]:
            del self._rows[adapter.digest]
            self._library.remove(self._numbers.pop(adapter.digest))

    def feeds(self, adapters: Sequence[LoadedAdapter | None]) -> Mapping[str, NDArray[Any]]:
        numbers = [self._numbers[adapter.digest] if adapter else 0 for adapter in adapters]
        return {"adapters": np.array(numbers, np.int64)}


class CopiedAdapters:
    """For the graph `rows`, which any ONNX Runtime runs: copied when the rows change, filled up to the largest rank."""

    def __init__(self, modules: Mapping[str, tuple[int, int]]) -> None:
        self._modules = modules
        # Of the last rows of each kind: where prompts are read, those of the prompts and those that decode take turns.
        self._kept: OrderedDict[tuple[str, ...], Mapping[str, NDArray[np.float32]]] = OrderedDict()

    def join(self, adapter: LoadedAdapter) -> None:
        if isinstance(adapter.values, AdapterLayout):
            raise AdapterError(f"{adapter.name}: laid out for another graph; load it again")

    def leave(self, adapter: LoadedAdapter) -> None:
        pass

    def feeds(self, adapters: Sequence[LoadedAdapter | None]) -> Mapping[str, NDArray[Any]]:
        digests = tuple(adapter.digest if adapter else "" for adapter in adapters)
        if digests not in self._kept:
            while len(self._kept) >= _KEPT:  # before there are new ones: copies are large
                self._kept.popitem(last=False)
            adapter_inputs = [adapter.values if adapter else {} for adapter in adapters]
            self._kept[digests] = row_values(
                [each for each in adapter_inputs if not isinstance(each, AdapterLayout)], self._modules
            )
        self._kept.move_to_end(digests)
        return self._kept[digests]
