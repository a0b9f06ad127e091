"""The quantizer against a slow reading of MatMulNBits' layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.base.quantize import Quantization, QuantizedMatrix, dequantize, quantize
from fedlora.base.scales import SCALE_RULES, ScaleRule
from fedlora.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.reference.tolerances import TOLERANCE

RULES = pytest.mark.parametrize("rule", SCALE_RULES)
LAYOUTS = pytest.mark.parametrize(
    ("bits", "block_size", "symmetric"),
    [(bits, block, symmetric) for bits in (4, 8) for block in (32, 64, 128) for symmetric in (True, False)],
)


def _code(packed: NDArray[np.uint8], index: int, bits: int) -> int:
    """Number `index` of a row of packed numbers: 4 bits stand in the low nibble first."""
    if bits == 8:
        return int(packed[index])
    byte = int(packed[index // 2])
    return byte & 0x0F if index % 2 == 0 else byte >> 4


def _reference(matrix: QuantizedMatrix) -> NDArray[np.float64]:
    """W[o, i] = (q[o, i] - zero[o, i // block]) * scale[o, i // block], one number at a time."""
    rows, columns = matrix.shape
    weight = np.empty((rows, columns))
    for o in range(rows):
        for i in range(columns):
            j, k = divmod(i, matrix.block_size)
            zero = 2 ** (matrix.bits - 1) if matrix.zeros is None else _code(matrix.zeros[o], j, matrix.bits)
            weight[o, i] = (_code(matrix.qweight[o, j], k, matrix.bits) - zero) * float(matrix.scales[o, j])
    return weight


def _error_in_steps(weight: NDArray[np.float32], matrix: QuantizedMatrix) -> NDArray[np.float64]:
    """|W - dequantized| [O, I] over the step of the block."""
    steps = np.repeat(np.abs(matrix.scales), matrix.block_size, axis=1)[:, : weight.shape[1]]
    error = np.abs(weight.astype(np.float64) - dequantize(matrix))
    return np.where(steps > 0, error / np.where(steps > 0, steps, 1), error)


def _random(rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=(rows, columns)).astype(np.float32)


@RULES
@LAYOUTS
@pytest.mark.parametrize("columns", [128, 200, 31])
def test_dequantize_equals_a_loop_over_the_layout(
    bits: int, block_size: int, symmetric: bool, columns: int, rule: ScaleRule
) -> None:
    matrix = quantize(_random(5, columns), bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule)
    np.testing.assert_allclose(dequantize(matrix), _reference(matrix), **TOLERANCE["float32"])


@RULES
@LAYOUTS
@pytest.mark.parametrize("columns", [128, 200, 31])
def test_the_arrays_have_the_shapes_of_matmulnbits(
    bits: int, block_size: int, symmetric: bool, columns: int, rule: ScaleRule
) -> None:
    matrix = quantize(_random(3, columns), bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule)
    blocks = math.ceil(columns / block_size)
    assert matrix.qweight.shape == (3, blocks, block_size * bits // 8)
    assert matrix.qweight.dtype == np.uint8
    assert matrix.scales.shape == (3, blocks)
    assert matrix.scales.dtype == np.float32
    if symmetric:
        assert matrix.zeros is None
    else:
        assert matrix.zeros is not None
        assert matrix.zeros.shape == (3, math.ceil(blocks * bits / 8))
        assert matrix.zeros.dtype == np.uint8
    assert matrix.shape == (3, columns)
    assert matrix.block_size == block_size


@RULES
@LAYOUTS
def test_every_code_is_the_nearest_of_all_codes(bits: int, block_size: int, symmetric: bool, rule: ScaleRule) -> None:
    weight = _random(2, 140)
    matrix = quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule)
    for o, i in np.ndindex(*weight.shape):
        j = i // block_size
        zero = 2 ** (bits - 1) if matrix.zeros is None else _code(matrix.zeros[o], j, bits)
        levels = (np.arange(2**bits) - zero) * float(matrix.scales[o, j])
        nearest = np.abs(levels - weight[o, i]).min()
        assert abs(_reference_value(matrix, o, i) - weight[o, i]) <= nearest + 1e-5 * abs(matrix.scales[o, j])


def _reference_value(matrix: QuantizedMatrix, o: int, i: int) -> float:
    j, k = divmod(i, matrix.block_size)
    zero = 2 ** (matrix.bits - 1) if matrix.zeros is None else _code(matrix.zeros[o], j, matrix.bits)
    return (_code(matrix.qweight[o, j], k, matrix.bits) - zero) * float(matrix.scales[o, j])


@LAYOUTS
def test_the_error_by_max_abs_is_at_most_half_a_step(bits: int, block_size: int, symmetric: bool) -> None:
    weight = _random(16, 256)
    if symmetric:
        # The range reaches one step less far opposite the largest entry: keep the others within it.
        blocked = weight.reshape(16, -1, block_size)
        top = np.abs(blocked).max(2, keepdims=True)
        bounded = np.clip(blocked, -top * 0.49, top * 0.49)
        bounded[..., :1] = -top
        weight = bounded.reshape(16, 256)
    matrix = quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule="max-abs")
    assert _error_in_steps(weight, matrix).max() <= 0.5 + 1e-4
    assert _error_in_steps(weight, matrix).max() > 0.25


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("extreme", [9.25, -9.25])
def test_max_abs_keeps_the_largest_entry_of_a_symmetric_block_exactly(
    bits: int, block_size: int, extreme: float
) -> None:
    weight = _random(1, block_size)
    weight[0, 5] = extreme
    kept = dequantize(quantize(weight, bits=bits, block_size=block_size, symmetric=True, scale_rule="max-abs"))
    assert kept[0, 5] == np.float32(extreme)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 70)),
        # A step is a 15th to a 255th of a block's range: from 1e-30 on no step is a subnormal number.
        elements=st.floats(-1e4, 1e4, width=32).map(lambda x: np.float32(0) if abs(x) < 1e-30 else np.float32(x)),
    )
)
def test_max_abs_is_off_by_no_more_than_half_a_step_within_the_range(
    bits: int, symmetric: bool, weight: NDArray[np.float32]
) -> None:
    matrix = quantize(weight, bits=bits, block_size=32, symmetric=symmetric, scale_rule="max-abs")
    # Symmetric: a value as large as the largest but of the other sign lies one step beyond the range.
    bound = 1.0 if symmetric else 0.5
    assert _error_in_steps(weight, matrix).max() <= bound * (1 + 1e-4)


@RULES
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-44, 1e-41, 1e-39, 1e-37])
def test_a_block_of_subnormal_numbers_is_as_good_as_zero_and_warns_of_nothing(
    bits: int, symmetric: bool, size: float, rule: ScaleRule
) -> None:
    weight = (_random(2, 64) * size).astype(np.float32)
    matrix = quantize(weight, bits=bits, block_size=32, symmetric=symmetric, scale_rule=rule)
    assert np.abs(dequantize(matrix) - weight).max() <= 10 * size


@RULES
@LAYOUTS
def test_a_zero_block_stays_exactly_zero(bits: int, block_size: int, symmetric: bool, rule: ScaleRule) -> None:
    weight = _random(2, 2 * block_size)
    weight[:, :block_size] = 0
    kept = dequantize(quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule))
    assert not kept[:, :block_size].any()
    assert kept[:, block_size:].any()


@RULES
@LAYOUTS
def test_zero_is_exact_wherever_it_stands(bits: int, block_size: int, symmetric: bool, rule: ScaleRule) -> None:
    weight = _random(4, 2 * block_size) + np.float32(3)  # all of one sign, but for the zeros
    weight[:, ::7] = 0
    kept = dequantize(quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule))
    assert not kept[:, ::7].any()


@RULES
@LAYOUTS
def test_padding_a_row_changes_no_code(bits: int, block_size: int, symmetric: bool, rule: ScaleRule) -> None:
    weight = _random(3, block_size + 10)
    zero_padded = np.zeros((3, 2 * block_size), np.float32)
    zero_padded[:, : block_size + 10] = weight
    short = quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule)
    full = quantize(zero_padded, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule)
    np.testing.assert_array_equal(short.qweight, full.qweight)
    np.testing.assert_array_equal(short.scales, full.scales)
    np.testing.assert_array_equal(dequantize(short), dequantize(full)[:, : block_size + 10])


@RULES
@LAYOUTS
def test_quantizing_what_was_dequantized_changes_nothing(
    bits: int, block_size: int, symmetric: bool, rule: ScaleRule
) -> None:
    once = dequantize(
        quantize(_random(4, 2 * block_size), bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule)
    )
    twice = dequantize(quantize(once, bits=bits, block_size=block_size, symmetric=symmetric, scale_rule=rule))
    np.testing.assert_allclose(twice, once, **TOLERANCE["float32"])


@RULES
def test_quantize_leaves_its_input_alone(rule: ScaleRule) -> None:
    weight = _random(3, 40)
    before = weight.copy()
    quantize(weight, bits=4, block_size=32, symmetric=False, scale_rule=rule)
    np.testing.assert_array_equal(weight, before)


def test_four_bits_stand_low_nibble_first() -> None:
    # Entry 0 is the largest: code 0. Scale 1 follows from -8 / -8; entries 1..15 are then 8 + themselves.
    weight = np.zeros((1, 32), np.float32)
    weight[0, :4] = [-8, 1, 2, -3]
    matrix = quantize(weight, bits=4, block_size=32, symmetric=True)
    assert matrix.scales[0, 0] == 1
    assert matrix.qweight[0, 0, 0] == 0x00 | 0x09 << 4
    assert matrix.qweight[0, 0, 1] == 0x0A | 0x05 << 4
    assert matrix.qweight[0, 0, 2] == 0x08 | 0x08 << 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"embedding_bits": 2}, "embedding_bits must be 4 or 8, got 2"),
        ({"block_size": 48}, "block_size must be one of 32, 64, 128, got 48"),
    ],
)
def test_a_quantization_out_of_range_is_refused_with_the_values_it_takes(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Quantization(**values)  # type: ignore[arg-type]
    assert str(caught.value) == message
