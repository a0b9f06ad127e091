"""The operator's library: compiled where it runs, checked before it is trusted, and told which adapters there are."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora.counted import counted
from fedlora.errors import AdapterError, AdapterStoreFullError, UnknownAdapterError
from fedlora.native import Build, BuildError, cached_library, instruction_flags, loaded_library
from fedlora.row_lora.layout import AdapterLayout
from fedlora.row_lora.self_check import disagreement

DOMAIN, OPERATOR, VERSION = "fedlora", "RowLora", 1

SOURCE = Path(__file__).with_name("row_lora.c")
_HEADERS = tuple(SOURCE.with_name(name) for name in ("adapters.h", "update.h", "onnxruntime_op.h"))
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
# {instruction set: what Linux must tell of a processor}, the best first
_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
}
_NOT_SOUND = -2  # adapters.h


class RowLora:
    """One loaded library and the adapters that it may read. Any thread may call it."""

    def __init__(self, library: Path) -> None:
        """Raises OSError or AttributeError where the library is damaged."""
        self.library = library  # for SessionOptions.register_custom_ops_library: as it was opened
        self._layouts: dict[int, tuple[AdapterLayout, ...]] = {}  # what the adapter of a number is read from
        self._lock = threading.Lock()
        loaded = ctypes.CDLL(str(library))
        self._add, self._combine, self._remove, self._apply = (
            loaded.fedlora_adapter_add, loaded.fedlora_adapter_combine, loaded.fedlora_adapter_remove,
            loaded.fedlora_adapter_apply,
        )  # fmt: skip
        self._add.argtypes = (c_void_p, c_int64, c_int, c_int64, c_void_p, c_void_p, c_int64)
        self._add.restype = c_int64
        self._combine.argtypes, self._combine.restype = (c_void_p, c_void_p, c_int64), c_int64
        self._remove.argtypes, self._remove.restype = (c_int64,), c_int
        self._apply.argtypes, self._apply.restype = (c_int64, c_int64, c_void_p, c_void_p, c_int64), c_int

    def add(self, layout: AdapterLayout) -> int:
        """The number by which a batch names the adapter, never 0 and never one that another had before.

        The layout stays in memory until it is removed. Raises AdapterStoreFullError where 4,095 are there already,
        AdapterError for a layout that is not sound.
        """
        values, table, scales = layout.values, layout.table, layout.scales
        with self._lock:
            number: int = self._add(
                values.ctypes.data, values.size, values.dtype == np.float16, len(table), table.ctypes.data,
                scales.ctypes.data, scales.size,
            )  # fmt: skip
            if number == _NOT_SOUND:
                raise AdapterError(
                    "the adapter's layout points out of its values or scales, or has a rank beyond 4096; expected one "
                    "that adapter_layout made"
                )
            return self._taken(number, (layout,))

    def combine(self, numbers: Sequence[int], weights: Sequence[float]) -> int:
        """The number of the weighted sum of adapters: one of their joined rank, whose parts are read where they lie.

        What it is made of may be removed before it. Raises AdapterStoreFullError, and UnknownAdapterError for a number that
        no adapter has, or one that scales its modules, or has others than the first has.
        """
        given, factors = np.array(numbers, np.int64), np.array(weights, np.float32)
        assert given.shape == factors.shape == (len(given),)
        with self._lock:
            number: int = self._combine(given.ctypes.data, factors.ctypes.data, len(given))
            if number == _NOT_SOUND:
                raise UnknownAdapterError(
                    f"the operator has no adapters of the same modules, none of them scaled, by the numbers "
                    f"{list(numbers)}; add them first"
                )
            return self._taken(number, tuple(layout for each in numbers for layout in self._layouts[each]))

    def _taken(self, number: int, layouts: tuple[AdapterLayout, ...]) -> int:
        if number < 0:
            raise AdapterStoreFullError(
                f"the operator takes no more than the {counted(len(self._layouts), 'adapter')} that it has; remove "
                "one first"
            )
        self._layouts[number] = layouts
        return number

    def remove(self, number: int) -> None:
        """Forget an adapter, whose number no run may name any more. Raises UnknownAdapterError."""
        with self._lock:
            if self._layouts.get(number) is None or self._remove(number):
                raise UnknownAdapterError(f"the operator has no adapter of number {number}; it was removed before")
            del self._layouts[number]

    def apply(
        self,
        number: int,
        module: int,  # its place among the adapter's
        x: NDArray[np.float32],  # [T, I]
        y: NDArray[np.float32],  # [T, O]
    ) -> NDArray[np.float32]:
        """s * (y + (x A) B) + t, without ONNX Runtime. Raises UnknownAdapterError."""
        layouts = self._layouts.get(number)
        if layouts is None or not 0 <= module < len(layouts[0].table):
            raise UnknownAdapterError(
                f"the operator has no module {module} of an adapter of number {number}; it was removed before"
            )
        inputs, outputs = layouts[0].table[module, :2].tolist()
        assert x.shape == (len(x), inputs) and y.shape == (len(x), outputs)
        result, x = np.array(y, np.float32, order="C"), np.ascontiguousarray(x, np.float32)
        assert self._apply(number, module, x.ctypes.data, result.ctypes.data, len(x)) == 0
        return result


@cache
def row_lora() -> RowLora:
    """The operator of this process. Raises BuildError where no library can be made, or one that computes wrong numbers."""
    try:
        operator = loaded_library(built_library, RowLora)
    except (OSError, AttributeError) as error:
        raise BuildError(f"the operator's library does not load: {error}") from None
    wrong = disagreement(operator)
    if wrong:
        raise BuildError(f"{operator.library.resolve()}: {wrong}; remove it, or name another compiler with CC")
    return operator


def built_library() -> Path:
    """The operator's shared library, from the cache or compiled now. Raises BuildError."""
    name = instruction_set()
    build = Build(compile_flags=(*_FLAGS, *instruction_flags(name)))
    return cached_library(SOURCE, f"row-lora-{name}", (build,), headers=_HEADERS)


def instruction_set() -> str:
    """avx512, avx2, or the machine's baseline by its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    return next((name for name, needs in _NEEDS.items() if needs <= has), platform.machine())
