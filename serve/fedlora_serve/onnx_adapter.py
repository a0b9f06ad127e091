"""Read a file of ONNX Runtime's adapter format, and verify it before anything uses it.

The runtime itself accepts a NaN or a flipped bit, and maps the file: one that is truncated later would end the process.
Here the values are copied, checked and handed on as plain inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.lora import MAX_RANK
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxAdapter:
    """The content of a file, copied."""

    model_version: int
    values: Mapping[str, NDArray[np.float32]]  # {input name: value}


def read_onnx_adapter(path: Path) -> OnnxAdapter:
    """Raises AdapterError where the file is not of the format, or holds something that is not finite float32."""
    if not path.is_file():
        raise AdapterError(f"{path}: no such file; make one with: fedlora export-adapter ADAPTER -o {path}")
    try:
        content = ort.AdapterFormat.read_adapter(str(path))
        version = int(content.get_model_version())
        values = {name: value.numpy().copy() for name, value in content.get_parameters().items()}
    except Exception as error:  # the runtime raises its own kinds, which share no base
        raise AdapterError(f"{path}: not a file of ONNX Runtime's adapter format: {error}") from None
    for name, value in values.items():
        if value.dtype != np.float32:
            raise AdapterError(f"{path}: {name} is {value.dtype}; expected float32")
        if not np.isfinite(value).all():
            raise AdapterError(f"{path}: {name} holds NaN or infinity; the adapter cannot be used")
    return OnnxAdapter(model_version=version, values=values)


def check_slots(adapter: OnnxAdapter, expected: Mapping[str, tuple[int, int]], model_version: int, where: str) -> None:
    """Raise AdapterMismatchError unless the adapter is for this base: its version, names, shapes and paired ranks.

    `expected` is {input name: shape} with -1 for the rank. Modules without an adapter are fine; halves of one are not.
    """
    if adapter.model_version != model_version:
        raise AdapterMismatchError(
            f"{where}: made for base {adapter.model_version:08x}, this base is {model_version:08x}; "
            "export the adapter again for this base"
        )
    if not adapter.values:
        raise AdapterMismatchError(f"{where}: the adapter has no modules")
    ranks: dict[str, set[int]] = {}
    for name, value in adapter.values.items():
        if name not in expected:
            raise AdapterMismatchError(
                f"{where}: the graph has no adapter input {name}; the adapter is for another base"
            )
        want = expected[name]
        fits = value.ndim == 2 and all(w in (-1, got) for w, got in zip(want, value.shape, strict=True))
        if not fits:
            shape = " x ".join("rank" if w == -1 else str(w) for w in want)
            raise AdapterMismatchError(f"{where}: {name} is {list(value.shape)}; the graph expects {shape}")
        ranks.setdefault(name.rsplit(".lora_", 1)[0], set()).add(value.shape[want.index(-1)])
    for module, found in ranks.items():
        halves = sum(name.startswith(f"{module}.lora_") for name in adapter.values)
        if halves != 2 or len(found) != 1 or max(found) > MAX_RANK:
            raise AdapterMismatchError(
                f"{where}: {module} needs A and B of one rank up to {MAX_RANK}, got {halves} of rank {sorted(found)}"
            )
