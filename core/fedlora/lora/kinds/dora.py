"""dora: a weight's direction trains as LoRA does, its length apart: W' = m * (W + gamma B A) / ||W + gamma B A||.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024 (arXiv:2402.09353). ||.|| is the length of each row, and a
constant in the gradient (section 4.3), as in PEFT. The trainer scales what a module gives: y = s * (W x + gamma B A x) + b
with s = m / ||W + gamma B A||, W the dequantized weight. Dropout acts on what A sees; in PEFT on a part of W x too.

Own tensors: MODULE.lora_magnitude_vector, m [O]. It begins at ||W||, where B = 0 changes nothing.

Its mean: the product is what the method of aggregation makes of it, the magnitudes are the mean of magnitudes. What each
device computes is not linear in the two together, so the mean of the weights W' is near, and not this.
"""

# O out features, I in features of a module

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError
from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import (
    Bias,
    Kind,
    Shape,
    Weight,
    check_module,
    check_shape,
    heads_of,
    modules_of,
    own_tensors,
)
from fedlora.lora.kinds.lora import Lora
from fedlora.lora.output_scale import SCALE, SHIFT, check_finite

WORD = "lora_magnitude_vector"
_BESIDE = "what it commits stands beside the adapter, frozen, and the lengths of rows would be of both together"
_REFUSED = {
    "stack": _BESIDE,
    "fedex": _BESIDE,
    "fedsa": "each device keeps a factor of its own, and the mean of lengths would be of no product of theirs",
}


class Dora(Kind):
    name, title, words = "dora", "DoRA", (WORD,)
    has_factors = takes_dropout = scales = True
    keys = Lora.keys - {"init"}
    mean = "the product as server.method makes it, the magnitudes by their mean: near the mean of weights, not equal"
    mean_is_exact = False
    peft_type, peft_mark = "LORA", "use_dora is set"

    def shapes(self, config: LoraConfig, model: ModelShape) -> dict[str, Shape]:
        modules = model.linear_modules()
        return {f"{module}.{WORD}": (modules[module][0],) for module in config.targets(modules)}

    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        targets = config.targets(model.linear_modules())
        return {f"{module}.{WORD}": lengths_of_rows(weight(module)) for module in targets}

    def check(self, adapter: Adapter, model: ModelShape, where: str) -> None:
        self.check_whole_at(adapter, where)
        modules = model.linear_modules()
        for name, array in own_tensors(adapter, self).items():
            check_shape(name, array, (check_module(name, modules, where)[:1],), where)

    def check_whole(self, adapter: Adapter) -> None:
        theirs = set(modules_of(own_tensors(adapter, self)))
        if odd := sorted(theirs ^ adapter.pairs.keys()):
            missing = WORD if odd[0] in adapter.pairs else "lora_A and lora_B"
            raise AdapterError(
                f"{odd[0]} has no {missing}; expected both of each module of DoRA: save it again with PEFT"
            )

    def as_scaled(self, adapter: Adapter, model: ModelShape, weight: Weight, bias: Bias) -> Adapter:
        """s = m / ||W + gamma B A||; the bias is not scaled, as in PEFT."""
        scales, biases = dict[str, NDArray[np.float32]](), model.float_tensors()
        with np.errstate(over="ignore", invalid="ignore"):
            for module in adapter.pairs:
                _, scale = self._moved(adapter, module, weight(module))
                scales[module + SCALE] = scale
                if f"{module}.bias" in biases:
                    scales[module + SHIFT] = (1 - scale) * bias(module)
        check_finite(scales)
        return Adapter(
            replace(adapter.config, method="lora"), adapter.pairs, extras=scales | dict(heads_of(adapter, self))
        )

    def merged(self, adapter: Adapter, module: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        moved, scale = self._moved(adapter, module, weight)
        return np.asarray(moved * scale[:, None], np.float32)

    def _moved(
        self, adapter: Adapter, module: str, weight: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(W + gamma B A [O, I], what its rows are times in the end [O])"""
        moved = super().merged(adapter, module, weight)
        lengths = np.maximum(lengths_of_rows(moved), np.finfo(np.float32).tiny)
        return moved, np.asarray(adapter.extras[f"{module}.{WORD}"] / lengths, np.float32)

    def refuses_method(self, method: str) -> str:
        return _REFUSED.get(method, "")

    def reads(self, peft_config: Mapping[str, Any]) -> bool:
        return super().reads(peft_config) and bool(peft_config.get("use_dora"))

    def peft_config(self, adapter: Adapter, fresh: dict[str, Any]) -> dict[str, Any]:
        return {**fresh, "use_dora": True}


def lengths_of_rows(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """||W|| by rows, [O, I] -> [O]"""
    squared: NDArray[np.float64] = np.einsum("oi,oi->o", weight, weight, dtype=np.float64)
    return np.sqrt(squared).astype(np.float32)
