"""An adapter's values as the operator reads them: one run of numbers, in the order in which they are needed.

Of each module, in the order of the model's `linear_modules()`:

    A  [I, R']              R' is the rank, filled up with zeros to a multiple of 8
    B  [ceil(O / 16), R', 16]    scaled; sixteen outputs side by side, filled up with zeros

Beside them, float32 whatever the dtype of A and B, s [O] and t [O] of each module that is scaled
(`fedlora.lora.output_scale`).
"""

# I in features, O out features, R rank

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.exported.inputs import input_names
from fedlora.lora.output_scale import INPUT, SCALE, SHIFT, rest_of

LayoutDtype = Literal["float32", "float16"]

_RANKS = 8  # a rank is filled up to a multiple of it
_PANEL = 16
_ALIGNMENT = 64  # bytes, of the values and of each matrix among them
INPUTS, OUTPUTS, RANK, AT_A, AT_B, AT_SCALE = range(6)  # the columns of a layout's table


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """Immutable; must stay in memory as long as the operator may read it, which `RowLora.add` sees to."""

    values: NDArray[Any]  # flat, float32 or float16
    # [modules, 6]: inputs, outputs, R' (0: no A and B), where A and B begin in the values, and s in the scales (-1: none)
    table: NDArray[np.int64]
    scales: NDArray[np.float32]  # flat

    @property
    def size_bytes(self) -> int:
        return self.values.nbytes + self.table.nbytes + self.scales.nbytes


def adapter_layout(
    adapter_inputs: Mapping[str, NDArray[np.float32]],  # of single modules (`fedlora.exported.inputs`)
    modules: Mapping[str, tuple[int, int]],  # {module: (O, I)}, every one of the model's
    dtype: LayoutDtype = "float32",
) -> AdapterLayout:
    """The layout of an adapter that sits on some of the modules.

    Raises AdapterMismatchError for adapter_inputs that the modules do not have, or that scale a module's input,
    AdapterError for a value that float16 does not hold.
    """
    ranks = _ranks(adapter_inputs, modules)
    table = np.zeros((len(modules), 6), np.int64)
    table[:, OUTPUTS], table[:, INPUTS] = np.array(list(modules.values()), np.int64).reshape(-1, 2).T
    table[:, RANK] = _multiple(np.array(ranks, np.int64), _RANKS)
    sizes = np.stack([table[:, INPUTS] * table[:, RANK], _multiple(table[:, OUTPUTS], _PANEL) * table[:, RANK]], axis=1)
    ends = np.cumsum(_multiple(sizes, _ALIGNMENT // np.dtype(dtype).itemsize)).reshape(-1, 2)
    table[:, AT_A] = np.concatenate([[0], ends[:-1, 1]])
    table[:, AT_B] = ends[:, 0]
    values = _aligned_zeros(int(ends[-1, 1]), dtype)
    with np.errstate(over="ignore"):
        for module, row, rank in zip(modules, table, ranks, strict=True):
            if rank:
                name_a, name_b = input_names(module)
                _fill(values, row, adapter_inputs[name_a], adapter_inputs[name_b])
    if dtype == "float16" and not np.isfinite(values).all():
        raise AdapterError("a value of the adapter is beyond float16's 65504; keep this adapter in float32")
    scales = _scales(adapter_inputs, modules, table)
    values.flags.writeable = table.flags.writeable = scales.flags.writeable = False
    return AdapterLayout(values=values, table=table, scales=scales)


def _scales(
    adapter_inputs: Mapping[str, NDArray[np.float32]], modules: Mapping[str, tuple[int, int]], table: NDArray[np.int64]
) -> NDArray[np.float32]:
    """s and t of each module that is scaled, one after another; where they begin is put into the table."""
    parts, end = [np.zeros(0, np.float32)], 0
    for row, (module, (rows, _)) in zip(table, modules.items(), strict=True):
        row[AT_SCALE] = -1
        if any(module + word in adapter_inputs for word in (SCALE, SHIFT)):
            row[AT_SCALE] = end
            for word in (SCALE, SHIFT):
                part = adapter_inputs.get(module + word, np.full(rows, rest_of(word), np.float32))
                if part.shape != (rows,):
                    raise AdapterMismatchError(
                        f"{module}{word} is {list(part.shape)}; expected [{rows}]: the adapter is for another base"
                    )
                parts.append(part)
            end += 2 * rows
    return np.concatenate(parts)


def _ranks(adapter_inputs: Mapping[str, NDArray[np.float32]], modules: Mapping[str, tuple[int, int]]) -> list[int]:
    """The rank of each module, 0 where it has no adapter."""
    ranks, known = [], set[str]()
    for module, (out_features, in_features) in modules.items():
        names = input_names(module)
        known.update(names, (module + SCALE, module + SHIFT))
        if not any(name in adapter_inputs for name in names):
            ranks.append(0)
            continue
        got_a, got_b = (adapter_inputs[name].shape if name in adapter_inputs else () for name in names)
        rank = got_a[-1] if got_a else 0
        if got_a != (in_features, rank) or got_b != (rank, out_features):
            raise AdapterMismatchError(
                f"{module}: A {list(got_a)} and B {list(got_b)}, expected [{in_features}, R] and [R, {out_features}]; "
                "the adapter is for another base"
            )
        ranks.append(rank)
    unknown = adapter_inputs.keys() - known
    if scaled := sorted(name for name in unknown if name.endswith(INPUT)):
        raise AdapterMismatchError(
            f"{scaled[0]}: profile kernel scales what modules give, and no module's input; use a graph of profile compat "
            "or fast that was exported with --output-scales"
        )
    if unknown:
        raise AdapterMismatchError(f"{min(unknown)}: the base has no such module; the adapter is for another base")
    return ranks


def _fill(
    values: NDArray[Any], row: NDArray[np.int64], lora_A: NDArray[np.float32], lora_B: NDArray[np.float32]
) -> None:
    """Copy A [I, R] and B [R, O] to their places."""
    inputs, outputs, padded, at_a, at_b, _ = row.tolist()
    rank = lora_A.shape[1]
    values[at_a : at_a + inputs * padded].reshape(inputs, padded)[:, :rank] = lora_A
    whole, rest = divmod(outputs, _PANEL)
    panels = values[at_b:][: (whole + bool(rest)) * padded * _PANEL].reshape(-1, padded, _PANEL)
    # One step of the outer loop is a run of the source and a strided one of the target.
    panels[:whole, :rank].transpose(1, 0, 2)[...] = lora_B[:, : whole * _PANEL].reshape(rank, whole, _PANEL)
    if rest:
        panels[whole, :rank, :rest] = lora_B[:, whole * _PANEL :]


def _multiple(numbers: NDArray[np.int64], of: int) -> NDArray[np.int64]:
    """Each number rounded up to a multiple."""
    return -(-numbers // of) * of


def _aligned_zeros(count: int, dtype: LayoutDtype) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    memory = np.zeros(count * width + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + count * width].view(dtype)
