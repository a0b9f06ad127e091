"""One adapter folded into its base: W' = W + scaling B A, quantized anew, as a base pack of its own.

What it costs is exactness: W is known only as its own quantization has it, and is rounded a second time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedlora.base.heads import extra_shapes
from fedlora.base.pack import MANIFEST, WEIGHTS, BasePack, manifest_text, read_manifest, tensor_shapes
from fedlora.base.quantize import QuantizedMatrix, dequantize, quantize
from fedlora.base.scales import ScaleRule
from fedlora.errors import AdapterError
from fedlora.files.tensor_file import Dtype, TensorPlan, write_tensor_file
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import adapted_modules, check_adapter_fits, kind_of


def write_merged(base: BasePack, adapter: Adapter, directory: Path, *, scale_rule: ScaleRule = "mse") -> None:
    """Write the pack of W' into the empty `directory`.

    Its quantization is the base's; matrices that the adapter leaves alone keep their bytes. Peak memory is a few of the
    largest matrix. Raises AdapterMismatchError where the adapter is for another base, AdapterError where the sum is not
    finite.
    """
    heads, kind = extra_shapes(base.model.head_parts(), base.model), kind_of(adapter)
    check_adapter_fits(adapter, base.model, heads, "the adapter to merge")
    if kind.is_virtual:
        raise AdapterError(
            f"the adapter to merge is of {kind.title}, tokens before the text, which no weight can hold; leave "
            "--merge out, or train with lora.method = lora"
        )
    touched = set(adapted_modules(adapter))
    plans = [
        TensorPlan(name=name, dtype=cast(Dtype, dtype), shape=shape)
        for name, (dtype, shape) in tensor_shapes(base.model, base.quantization).items()
    ]
    pending: dict[str, NDArray[Any]] = {}  # scales and zeros, which follow their codes in the file

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        if plan.name in adapter.extras:
            yield adapter.extras[plan.name]
            return
        module, part = plan.name.rsplit(".", 1)
        if module in touched and part == "bias":
            yield kind.merged_bias(adapter, module, base.weights.float32(plan.name))
            return
        if module not in touched or part not in ("qweight", "scales", "zeros"):
            yield base.weights.array(plan.name)
            return
        if part == "qweight":
            matrix = _merged(base, adapter, module, scale_rule)
            pending[f"{module}.scales"] = matrix.scales
            if matrix.zeros is not None:
                pending[f"{module}.zeros"] = matrix.zeros
            yield matrix.qweight
        else:
            yield pending.pop(plan.name)

    for name in read_manifest(base.directory)["files"]:
        if name != WEIGHTS:
            shutil.copyfile(base.directory / name, directory / name)
    write_tensor_file(directory / WEIGHTS, plans, fill)
    text = manifest_text(f"{base.source} with an adapter merged", base.quantization, scale_rule, directory)
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _merged(base: BasePack, adapter: Adapter, module: str, scale_rule: ScaleRule) -> QuantizedMatrix:
    quantization = base.quantization
    with np.errstate(over="ignore", invalid="ignore"):
        weight = kind_of(adapter).merged(adapter, module, dequantize(base.matrix(module)))
    if not np.isfinite(weight).all():
        raise AdapterError(f"{module}: the merged weight is not finite in float32; the adapter cannot be merged")
    return quantize(
        weight, bits=base.bits(module), block_size=quantization.block_size, symmetric=quantization.symmetric,
        scale_rule=scale_rule,
    )  # fmt: skip
