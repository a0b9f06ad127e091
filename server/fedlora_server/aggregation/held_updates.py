"""The updates of a round that are looked at together: in memory as they came, and past a bound in a file, mapped."""

from __future__ import annotations

import tempfile
import weakref
from typing import IO

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, LoraPair
from numpy.typing import NDArray

from fedlora_server.methods.moved import Moved

_IN_MEMORY_BYTES = 1 << 28


class HeldUpdates:
    """Memory: 256 MB, whatever the number of devices. The file has no name, and its pages are the system's to drop."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._bytes = 0

    def hold(self, adapter: Adapter) -> Adapter:
        """The same adapter, to be kept. Raises RunError where there is no room for the file."""
        if isinstance(adapter, Moved):
            factors = self.hold(Adapter(adapter.config, adapter.pairs, extras=adapter.extras))
            return Moved(factors.config, factors.pairs, self.hold(adapter.products), extras=factors.extras)
        self._bytes += adapter.size_bytes
        if self._bytes <= _IN_MEMORY_BYTES:
            return adapter
        try:
            return self._mapped(adapter)
        except OSError as error:
            raise RunError(
                f"{tempfile.gettempdir()}: the updates of the round do not fit into memory, nor there: {error.strerror}; "
                "make room there, name another place in $TMPDIR, or set aggregation.robust to none, which holds none"
            ) from None

    def _mapped(self, adapter: Adapter) -> Adapter:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lasts as long as its maps)
            weakref.finalize(self, self._file.close)
        file = self._file
        begin = file.seek(0, 2)
        for pair in adapter.pairs.values():
            file.write(np.ascontiguousarray(pair.lora_A).data)
            file.write(np.ascontiguousarray(pair.lora_B).data)
        for array in adapter.extras.values():
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        numbers = np.memmap(file, np.float32, "r", begin, adapter.size_bytes // 4)
        pairs, taken = {}, 0

        def next_like(array: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal taken
            taken += array.size
            return numbers[taken - array.size : taken].reshape(array.shape)

        for module, pair in adapter.pairs.items():
            pairs[module] = LoraPair(next_like(pair.lora_A), next_like(pair.lora_B))
        extras = {name: next_like(array) for name, array in adapter.extras.items()}
        return Adapter(adapter.config, pairs, extras=extras)
