"""The C code as a Raspberry-Pi-class or Jetson-class board runs it: compiled for aarch64, run under an emulator of it, and
compared with plain torch and numpy as it is on a device before it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.row_lora import library as row_lora
from fedlora.row_lora import self_check as row_lora_check
from fedlora.row_lora.layout import AdapterLayout
from fedlora_client.ops import build, native_ops
from fedlora_client.ops.native_ops import NativeOps
from fedlora_client.ops.self_check import disagreement
from numpy.typing import NDArray
from torch import Tensor

from tests.aarch64.remote_library import Argument, Pointer, RemoteLibrary, compiled, missing, remote_library

pytestmark = [pytest.mark.aarch64, pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")]

_THREADED, _ALONE = ("-fopenmp",), ("-fopenmp-simd",)


class RemoteOps(NativeOps):
    """The kernels of a remote library; torch's tensors stay here."""

    def __init__(self, library: RemoteLibrary) -> None:
        self.name, self._functions = "aarch64", {
            (function, dtype): partial(_called, library, f"{function}_{suffix}")
            for function in native_ops._ARGUMENTS
            for dtype, suffix in native_ops._DTYPES.items()
        }  # fmt: skip


class RemoteRowLora:
    """The operator's arithmetic in a remote library."""

    def __init__(self, library: RemoteLibrary) -> None:
        self._library, self._layouts = library, dict[int, AdapterLayout]()

    def add(self, layout: AdapterLayout) -> int:
        values, table, scales = (Pointer(_bytes(each)) for each in (layout.values, layout.table, layout.scales))
        is_half = layout.values.dtype == np.float16
        number = self._library.call(
            "fedlora_adapter_add",
            values,
            layout.values.size,
            is_half,
            len(layout.table),
            table,
            scales,
            layout.scales.size,
        )
        assert number > 0
        self._layouts[number] = layout
        return number

    def combine(self, numbers: Sequence[int], weights: Sequence[float]) -> int:
        arrays = np.array(numbers, np.int64), np.array(weights, np.float32)
        number = self._library.call(
            "fedlora_adapter_combine", *(Pointer(_bytes(each)) for each in arrays), len(numbers)
        )
        assert number > 0
        return number

    def remove(self, number: int) -> None:
        assert self._library.call("fedlora_adapter_remove", number) == 0

    def apply(self, number: int, module: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        result = np.array(y, np.float32, order="C")
        pointers = Pointer(_bytes(np.ascontiguousarray(x))), Pointer(_bytes(result))
        assert self._library.call("fedlora_adapter_apply", number, module, *pointers, len(x)) == 0
        return result


@pytest.fixture
def by_tensor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors in the place of their addresses, which mean nothing to another process."""
    monkeypatch.setattr(native_ops, "_at", lambda tensor: tensor)
    monkeypatch.setattr(native_ops, "_rows", lambda tensor: (tensor, tensor.stride(0)))
    yield


@pytest.mark.usefixtures("by_tensor")
@pytest.mark.parametrize("flags", [_THREADED, _ALONE], ids=["threads", "alone"])
def test_the_kernels_agree_with_plain_torch_on_aarch64(tmp_path: Path, flags: tuple[str, ...]) -> None:
    library = compiled(build.SOURCE, tmp_path / "kernels.so", [*build._FLAGS, *flags], ["-lm"])
    with remote_library(library) as remote:
        assert disagreement(RemoteOps(remote)) is None


@pytest.mark.usefixtures("by_tensor")
def test_a_wrong_kernel_is_found_on_aarch64(tmp_path: Path) -> None:
    source = tmp_path / "kernels.c"
    text = build.SOURCE.read_text().replace("squares / (float)width + eps", "squares / (float)width")
    source.write_text(text)
    library = compiled(source, tmp_path / "kernels.so", [*build._FLAGS, *_ALONE], ["-lm"])
    with remote_library(library) as remote:
        assert "rms_norm" in str(disagreement(RemoteOps(remote)))


def test_the_operator_agrees_with_numpy_on_aarch64(tmp_path: Path) -> None:
    library = compiled(row_lora.SOURCE, tmp_path / "row_lora.so", row_lora._FLAGS)
    with remote_library(library) as remote:
        assert row_lora_check.disagreement(RemoteRowLora(remote)) is None


def _called(library: RemoteLibrary, name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel on tensors: whole storages travel, so that what two tensors share stays shared."""
    blocks = dict[int, NDArray[np.uint8]]()

    def sent(argument: Any) -> Argument:
        if not isinstance(argument, Tensor):
            return argument  # type: ignore[no-any-return]
        storage = argument.untyped_storage()
        block = blocks.setdefault(storage.data_ptr(), torch.tensor([], dtype=torch.uint8).set_(storage).numpy())
        return Pointer(block, argument.data_ptr() - storage.data_ptr())

    library.call(name, *map(sent, arguments))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's own memory."""
    return array.reshape(-1).view(np.uint8)
