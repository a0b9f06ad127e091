"""An adapter folded into its base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedlora.base.merging import write_merged
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import dequantize, quantize
from fedlora.errors import AdapterMismatchError
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import BY_NAME

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import tiny_quantization, write_checkpoint
from tests.tiny.encoders import encoder_pack, shape_of
from tests.tiny.kinds import adapter_of_kind


def pack(folder: Path, symmetric: bool = True) -> BasePack:
    make_pack(str(write_checkpoint(folder / "source")), folder / "pack", tiny_quantization(symmetric=symmetric))
    return open_pack(folder / "pack")


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_matrix_is_the_bases_plus_its_update_quantized_once_more(tmp_path: Path, symmetric: bool) -> None:
    base = pack(tmp_path, symmetric)
    whole = adapter_on(LoraConfig(rank=3, alpha=6.0), base.shape.linear_modules())
    adapter = Adapter(whole.config, {m: pair for m, pair in whole.pairs.items() if not m.endswith("k_proj")})
    (tmp_path / "merged").mkdir()
    write_merged(base, adapter, tmp_path / "merged")
    merged = open_pack(tmp_path / "merged")
    assert merged.fingerprint != base.fingerprint
    assert merged.quantization == base.quantization
    assert merged.shape == base.shape
    for module in base.shape.linear_modules() | base.shape.vocabulary_modules():
        got, before = merged.matrix(module), base.matrix(module)
        if module not in adapter.pairs:
            np.testing.assert_array_equal(got.qweight, before.qweight)
            np.testing.assert_array_equal(got.scales, before.scales)
            continue
        pair = adapter.pairs[module]
        update = adapter.config.scaling_of(module) * pair.lora_B @ pair.lora_A
        weight = (dequantize(before) + update).astype(np.float32)
        wanted = quantize(weight, bits=got.bits, block_size=got.block_size, symmetric=symmetric)
        np.testing.assert_allclose(dequantize(got), dequantize(wanted), atol=1e-5)
        assert np.abs(dequantize(got) - dequantize(before)).max() > 0.01
    for module in base.shape.norm_modules():
        np.testing.assert_array_equal(merged.norm(module), base.norm(module))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = pack(tmp_path)
    (tmp_path / "merged").mkdir()
    with pytest.raises(AdapterMismatchError, match=r"the adapter to merge: the base has no module model\.other"):
        write_merged(
            base,
            adapter_on(LoraConfig(rank=3, target_modules=("q_proj",)), {"model.other.q_proj": (8, 8)}),
            tmp_path / "merged",
        )
    assert not list((tmp_path / "merged").iterdir())


@pytest.mark.parametrize("kind", ["ia3", "dora", "vera"])
def test_an_adapter_of_another_kind_is_merged_as_it_computes(tmp_path: Path, kind: str) -> None:
    """Beside the weight that PEFT's definition gives, quantized once more: RoBERTa's modules have biases too."""
    base = encoder_pack("roberta")
    adapter = adapter_of_kind(kind, base)
    adapter = BY_NAME[kind].as_lora(adapter, base.model) or adapter
    (tmp_path / "merged").mkdir()
    write_merged(base, adapter, tmp_path / "merged")
    merged, layer = open_pack(tmp_path / "merged"), shape_of(base).layer_name(0)
    key, output = f"{layer}.attention.self.key", f"{layer}.output.dense"
    wanted = {module: dequantize(base.matrix(module)).astype(np.float64) for module in (key, output)}
    bias = base.floats(f"{key}.bias")
    if kind == "ia3":
        wanted[key] *= adapter.extras[f"{key}.ia3_l"]
        wanted[output] *= adapter.extras[f"{output}.ia3_l"]
        bias = bias * adapter.extras[f"{key}.ia3_l"][:, 0]
    else:
        for module in wanted:
            pair = adapter.pairs[module]
            wanted[module] += adapter.config.scaling_of(module) * pair.lora_B.astype(np.float64) @ pair.lora_A
        if kind == "dora":
            for module, weight in wanted.items():
                magnitude = adapter.extras[f"{module}.lora_magnitude_vector"]
                wanted[module] = weight / np.linalg.norm(weight, axis=1, keepdims=True) * magnitude[:, None]
    for module, weight in wanted.items():
        got = merged.matrix(module)
        once_more = quantize(
            weight.astype(np.float32), bits=got.bits, block_size=got.block_size, symmetric=base.quantization.symmetric
        )
        np.testing.assert_allclose(dequantize(got), dequantize(once_more), atol=1e-4)
    np.testing.assert_allclose(merged.floats(f"{key}.bias"), bias, rtol=1e-6)
