from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fedlora.quantize import QuantizedMatrix, dequantize, quantize
from fedlora_client.packed import PackedMatrix, frozen_linear

from tests.models import VARIANTS, Packs, assert_close

SHAPES = [(5, 32), (7, 64), (3, 172), (4, 33), (6, 160)]  # whole blocks, a padded last one, odd and even counts of them


def quantized(rows: int, columns: int, bits: int, block_size: int, symmetric: bool) -> QuantizedMatrix:
    weight = np.random.default_rng(rows * columns).normal(0, 1, (rows, columns)).astype(np.float32)
    weight[0] = 0  # a row of zeros has a scale of 0
    return quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantized_equals_the_numpy_reference_bit_for_bit(
    shape: tuple[int, int], bits: int, block_size: int, symmetric: bool
) -> None:
    matrix = quantized(*shape, bits, block_size, symmetric)
    got = PackedMatrix.view(matrix).dequantized().numpy()
    assert got.dtype == np.float32
    assert np.array_equal(got, dequantize(matrix))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_gathered_rows_are_those_of_the_whole_matrix_bit_for_bit(bits: int, symmetric: bool) -> None:
    matrix = quantized(9, 172, bits, 32, symmetric)
    rows = np.array([3, 0, 8, 3, 3, 5])  # out of order and repeated, as tokens are
    got = PackedMatrix.view(matrix).dequantized(torch.from_numpy(rows)).numpy()
    assert np.array_equal(got, dequantize(matrix)[rows])
    assert np.array_equal(PackedMatrix.view(matrix).dequantized(slice(2, 5)).numpy(), dequantize(matrix)[2:5])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_of_a_pack_is_read_bit_for_bit(packs: Packs, variant: str) -> None:
    pack = packs(VARIANTS[variant])
    for module in pack.shape.linear_modules() | pack.shape.vocabulary_modules():
        matrix = pack.matrix(module)
        assert np.array_equal(PackedMatrix.view(matrix).dequantized().numpy(), dequantize(matrix)), module


def test_dequantizing_leaves_the_packed_codes_as_they_were() -> None:
    matrix = quantized(6, 64, 8, 32, symmetric=False)
    before = matrix.qweight.copy(), matrix.scales.copy()
    packed = PackedMatrix.view(matrix)
    packed.dequantized().add_(1)
    packed.dequantized(torch.tensor([1, 2])).add_(1)
    assert np.array_equal(matrix.qweight, before[0])
    assert np.array_equal(matrix.scales, before[1])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_frozen_linear_and_its_gradient_equal_the_dense_product(bits: int, symmetric: bool) -> None:
    matrix = quantized(7, 172, bits, 32, symmetric)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 172, generator=generator, requires_grad=True)
    upstream = torch.randn(5, 7, generator=generator)
    y = frozen_linear(x, PackedMatrix.view(matrix))
    y.backward(upstream)  # type: ignore[no-untyped-call]
    dense = dequantize(matrix).astype(np.float64)
    assert_close(y, x.detach().numpy() @ dense.T)
    assert_close(x.grad, upstream.numpy() @ dense)


def test_frozen_linear_keeps_no_tensor_for_the_backward() -> None:
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def unpack(saved: Any) -> torch.Tensor:
        assert isinstance(saved, torch.Tensor)
        return saved

    x = torch.ones(3, 64, requires_grad=True)
    packed = PackedMatrix.view(quantized(4, 64, 4, 32, symmetric=True))
    with torch.autograd.graph.saved_tensors_hooks(keep, unpack):
        frozen_linear(x, packed).sum().backward()  # type: ignore[no-untyped-call]
        assert kept == []
        (x @ torch.ones(64, 4)).sum()
    assert len(kept) == 1  # the hook does see what a plain product keeps
