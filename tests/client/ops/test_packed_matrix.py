"""Packed weights as tensors: rows by number, every matrix of a pack, and products with LoRA beside them."""

# N rows, I in features, O out features

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fedlora.base.quantize import QuantizedMatrix, dequantize, quantize
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora_client.layers.linear import Linear
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.plain_ops import embedding_rows
from fedlora_client.ops.workspace import Workspace
from numpy.typing import NDArray

from tests.reference.agreement import assert_close
from tests.tiny.llamas import VARIANTS, Packs

CPU = torch.device("cpu")


def quantized(rows: int, columns: int, bits: int, block_size: int, symmetric: bool) -> QuantizedMatrix:
    weight = np.random.default_rng(rows * columns).normal(0, 1, (rows, columns)).astype(np.float32)
    return quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_gathered_rows_are_those_of_the_whole_matrix_bit_for_bit(
    bits: int, symmetric: bool, dtype: torch.dtype
) -> None:
    matrix = quantized(9, 172, bits, 32, symmetric)
    rows = torch.tensor([3, 0, 8, 3, 3, 5])  # out of order and repeated, as tokens are
    out = torch.zeros(6, 172, dtype=dtype)
    embedding_rows(PackedMatrix.of(matrix, CPU), rows, out)
    assert torch.equal(out, torch.from_numpy(dequantize(matrix)[rows.numpy()]).to(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_of_a_pack_is_read_bit_for_bit(packs: Packs, ops: Ops, variant: str) -> None:
    pack = packs(VARIANTS[variant])
    for module, shape in (pack.shape.linear_modules() | pack.shape.vocabulary_modules()).items():
        matrix, out = pack.matrix(module), torch.zeros(shape)
        ops.dequantize(PackedMatrix.of(matrix, CPU), 0, shape[0], out)
        assert np.array_equal(out.numpy(), dequantize(matrix)), module


def test_dequantizing_leaves_the_packed_codes_as_they_were(ops: Ops) -> None:
    matrix = quantized(6, 64, 8, 32, symmetric=False)
    assert matrix.zeros is not None
    stored: list[NDArray[Any]] = [matrix.qweight, matrix.scales, matrix.zeros]
    before = [part.copy() for part in stored]
    packed, out = PackedMatrix.of(matrix, CPU), torch.zeros(6, 64)
    ops.dequantize(packed, 0, 6, out)
    out.add_(1)
    embedding_rows(packed, torch.tensor([1, 2]), out[:2])
    for now, then in zip(stored, before, strict=True):
        assert np.array_equal(now, then)


def test_a_packed_matrix_shares_the_memory_of_the_mapped_one() -> None:
    matrix = quantized(6, 64, 4, 32, symmetric=True)
    packed = PackedMatrix.of(matrix, CPU)
    assert packed.qweight.data_ptr() == matrix.qweight.ctypes.data
    assert (packed.out_features, packed.in_features, packed.block_size) == (6, 64, 32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_linear_module_and_its_gradient_equal_the_dense_product(ops: Ops, bits: int, symmetric: bool) -> None:
    matrix = quantized(7, 172, bits, 32, symmetric)
    linear, space = Linear("m", PackedMatrix.of(matrix, CPU), ops), Workspace(CPU, torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, dy, residual = (torch.randn(5, size, generator=generator) for size in (172, 7, 7))
    y, dx = torch.zeros(5, 7), torch.ones(5, 172)
    dense = dequantize(matrix).astype(np.float64)
    linear.forward(x, None, None, space, y)
    assert_close(y, x.numpy() @ dense.T)
    linear.forward(x, None, None, space, y, residual)
    assert_close(y, residual.numpy() + x.numpy() @ dense.T)
    linear.backward(x, None, dy, None, space, dx)
    assert_close(dx, dy.numpy() @ dense)
    linear.backward(x, None, dy, None, space, dx, add=True)
    assert_close(dx, 2 * dy.numpy() @ dense)


def test_lora_beside_a_weight_is_the_scaled_dense_product(ops: Ops) -> None:
    matrix = quantized(7, 172, 4, 32, symmetric=True)
    generator = np.random.default_rng(1)
    lora_A, lora_B = (generator.normal(size=shape).astype(np.float32) for shape in ((3, 172), (7, 3)))
    factors = LoraTensors([Adapter(LoraConfig(rank=3, alpha=0.75), {"m": LoraPair(lora_A, lora_B)})], CPU).modules["m"]
    linear, space = Linear("m", PackedMatrix.of(matrix, CPU), ops), Workspace(CPU, torch.float32)
    x, y = torch.full((5, 172 + 4), 9.0), torch.zeros(5, 7)  # one extra column more than this module needs
    x[:, :172] = torch.randn(5, 172, generator=torch.Generator().manual_seed(0))
    seen = x[:, :172].double().numpy()
    linear.forward(x, linear.lora_down(x, factors, space), factors, space, y)
    merged = dequantize(matrix) + 0.25 * lora_B.astype(np.float64) @ lora_A.astype(np.float64)
    assert_close(y, seen @ merged.T)
