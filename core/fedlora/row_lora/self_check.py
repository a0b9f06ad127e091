"""Does the operator's arithmetic agree with numpy's? Asked once a process, before it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora import native
from fedlora.exported.inputs import input_names
from fedlora.lora.output_scale import SCALE, SHIFT, rest_of
from fedlora.native import Comparison
from fedlora.row_lora.layout import AdapterLayout, LayoutDtype, adapter_layout

_TOLERANCE = 1e-5  # of the largest value: sums of fewer than 64 products
_DTYPES: tuple[LayoutDtype, ...] = ("float32", "float16")
# (I, O, R): whole vectors, none that is whole, and every way to cut a rank
_MODULES = ((32, 32, 8), (37, 21, 3), (16, 48, 16), (19, 5, 21))
_TOKENS = (1, 3, 11)
_SCALED = (1, 2)  # the places of the modules that one adapter scales, too
_WEIGHTS = (0.5, -1.25)  # of an adapter in one dtype and in the other, as one


class _Operator(Protocol):
    def add(self, layout: AdapterLayout) -> int: ...
    def combine(self, numbers: Sequence[int], weights: Sequence[float]) -> int: ...
    def remove(self, number: int) -> None: ...
    def apply(
        self, number: int, module: int, x: NDArray[np.float32], y: NDArray[np.float32]
    ) -> NDArray[np.float32]: ...


def disagreement(operator: _Operator) -> str | None:
    """Which update differs from numpy's by more than rounding, and by how much; None where all agree."""
    return native.disagreement(_updates(operator), "numpy's")


def _updates(operator: _Operator) -> Iterator[Comparison]:
    generator = np.random.default_rng(0)
    modules = {str(place): (outputs, inputs) for place, (inputs, outputs, _) in enumerate(_MODULES)}
    adapter_inputs, scales = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]]()
    for place, (inputs, outputs, rank) in enumerate(_MODULES):
        # What float16 holds exactly, so that both dtypes have one result; a few of them subnormal there.
        for name, shape in zip(input_names(str(place)), ((inputs, rank), (rank, outputs)), strict=True):
            adapter_inputs[name] = (generator.integers(-2048, 2048, shape) * 2.0 ** generator.integers(-24, -8)).astype(
                np.float32
            )
    for name in map(str, _SCALED):
        largest = float(np.abs(np.matmul(*(adapter_inputs[factor] for factor in input_names(name)))).max())
        for word, size in ((SCALE, 1.0), (SHIFT, largest)):
            scales[name + word] = (size * generator.normal(size=modules[name][0])).astype(np.float32)
    numbers = [operator.add(adapter_layout(adapter_inputs, modules, dtype)) for dtype in _DTYPES]
    weights = dict(zip((*numbers, operator.combine(numbers, _WEIGHTS)), (1.0, 1.0, sum(_WEIGHTS)), strict=True))
    weights |= {(scaled := operator.add(adapter_layout(adapter_inputs | scales, modules))): 1.0}
    try:
        told = (*_DTYPES, "float32 and float16", "float32")
        for (number, weight), dtype in zip(weights.items(), told, strict=True):
            for place, (inputs, outputs, rank) in enumerate(_MODULES):
                lora_A, lora_B = (adapter_inputs[name].astype(np.float64) for name in input_names(str(place)))
                own = scales if number == scaled else {}
                scale, shift = (own.get(f"{place}{word}", rest_of(word)) for word in (SCALE, SHIFT))
                for tokens in _TOKENS:
                    x = generator.normal(size=(tokens, inputs)).astype(np.float32)
                    update = weight * (x.astype(np.float64) @ lora_A @ lora_B)
                    y = (np.abs(update).max() * generator.normal(size=(tokens, outputs))).astype(np.float32)
                    yield Comparison(
                        what=f"an update of rank {rank} in {dtype}",
                        got=operator.apply(number, place, x, y).astype(np.float64)
                        - (scale * y.astype(np.float64) + shift),
                        expected=scale * update,
                        tolerance=_TOLERANCE,
                    )
    finally:
        for number in weights:
            operator.remove(number)
