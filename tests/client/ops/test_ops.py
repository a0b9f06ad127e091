"""The contract of `Ops`: every operation, in plain torch and in C, against its definition in float64."""

# letters as in `ops`

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.quantize import QuantizedMatrix, dequantize, quantize
from fedlora_client.data.windows import IGNORED
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from torch import Tensor

from tests.reference.tolerances import ONE_OPERATION

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EPS = 1e-3
UNTOUCHED = 7.0
CPU = torch.device("cpu")

Activation = Callable[[Tensor], Tensor]
Glu = Callable[..., None]  # swiglu and its like, or a backward of them
Results = Iterator[tuple[Tensor, Tensor]]  # (what the operation gave, what its definition gives in float64)


class Inputs:
    """Numbers of the compute dtype, and rooms for results whose surroundings are watched."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(0)
        self._rooms: list[tuple[Tensor, Tensor]] = []

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def wide(self, *shape: int) -> Tensor:
        """Numbers that are float32 whatever the dtype."""
        return torch.randn(shape, generator=self._generator)

    def room(self, *shape: int, apart: int = 0) -> Tensor:
        """A place for a result [.., columns] in the middle of a buffer, with rows that lie `apart` numbers apart."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        buffer = torch.full((rows * (columns + apart) + 9,), UNTOUCHED, dtype=self.dtype)
        room = buffer[5 : 5 + rows * (columns + apart)].view(rows, columns + apart)[:, :columns]
        written = torch.zeros(len(buffer), dtype=torch.bool)
        written[5 : 5 + rows * (columns + apart)].view(rows, columns + apart)[:, :columns] = True
        self._rooms.append((buffer, written))
        return room if apart else room.view(shape)

    def copy(self, values: Tensor) -> Tensor:
        """`values` in a room."""
        return self.room(*values.shape).copy_(values)

    def apart(self, values: Tensor) -> Tensor:
        """`values` in rows that lie further apart."""
        return self.room(*values.shape, apart=2).copy_(values)

    def assert_nothing_else_is_written(self) -> None:
        assert self._rooms
        for buffer, written in self._rooms:
            assert bool((buffer[~written] == UNTOUCHED).all())


def leaf(value: Tensor) -> Tensor:
    return value.double().requires_grad_()


def gradients(output: Tensor, upstream: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, upstream.double())


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def rms_norm(ops: Ops, inputs: Inputs) -> Results:
    for rows, width in ((1, 1), (3, 37), (5, 64)):
        x, weight, out = inputs.random(rows, width), inputs.wide(width), inputs.room(rows, width, apart=3)
        ops.rms_norm(x, weight, EPS, out)
        yield out, normed(x.double(), weight)


def rms_norm_backward(ops: Ops, inputs: Inputs) -> Results:
    for rows, width in ((1, 2), (3, 37), (5, 64)):
        x, weight, dy, before = inputs.random(rows, width), inputs.wide(width), *inputs.random(2, rows, width)
        dx = inputs.copy(before)
        ops.rms_norm_backward(x, weight, EPS, dy, dx)
        wide = leaf(x)
        yield dx, before.double() + gradients(normed(wide, weight), dy, wide)[0]


def rotated(heads: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """Each pair (x_i, x_{i + D/2}) is a complex number, times cos + i sin of its position's angle."""
    if rope is None:
        return heads
    sequences, _, length, size = heads.shape
    angle = torch.complex(*(table.double() for table in rope)).view(sequences, 1, length, size // 2)
    result = torch.complex(*heads.chunk(2, -1)) * angle
    return torch.cat((result.real, result.imag), -1)


HEADS = [(1, 1, 1, 2), (2, 3, 5, 6), (3, 4, 7, 16)]  # S, heads, T, D


def split_heads(ops: Ops, inputs: Inputs) -> Results:
    for sequences, heads, length, size in HEADS:
        rows = inputs.random(sequences * length, heads * size)
        angle = inputs.wide(sequences * length, size // 2)
        expected = rows.double().view(sequences, length, heads, size).transpose(1, 2)
        for rope in (None, (angle.cos(), angle.sin())):
            for given in (rows, inputs.apart(rows)):
                out = inputs.room(sequences, heads, length, size)
                ops.split_heads(given, rope, out)
                yield out, rotated(expected, rope)


def merge_heads(ops: Ops, inputs: Inputs) -> Results:
    """The gradient of splitting."""
    for sequences, heads, length, size in HEADS:
        upstream = inputs.random(sequences, heads, length, size)
        angle = inputs.wide(sequences * length, size // 2)
        for rope in (None, (angle.cos(), angle.sin())):
            out = inputs.room(sequences * length, heads * size, apart=5)
            ops.merge_heads(upstream, rope, out)
            rows = torch.zeros(sequences * length, heads * size, dtype=torch.float64, requires_grad=True)
            split = rows.view(sequences, length, heads, size).transpose(1, 2)
            yield out, gradients(rotated(split, rope), upstream, rows)[0]


# S, heads, T, first query, T' queries: whole sequences, the first, a middle and the last block of queries, one query
SCORES = [(1, 1, 1, 0, 1), (2, 3, 7, 0, 7), (2, 3, 7, 0, 3), (2, 2, 19, 5, 9), (1, 4, 40, 33, 7), (3, 1, 6, 5, 1)]


def examples(sequences: int, length: int) -> Tensor:
    """Where the example of each position begins, int64 [S, T]: several to a sequence, some of one token."""
    begins = np.random.default_rng(length).random((sequences, length)) < 0.3
    begins[:, 0] = True
    return torch.from_numpy(np.maximum.accumulate(np.where(begins, np.arange(length), 0), 1))


def attended(starts: Tensor, first: int, queries: int) -> Tensor:
    """bool [S, 1, T', P], one position at a time."""
    result = torch.zeros(len(starts), 1, queries, first + queries, dtype=torch.bool)
    for s in range(len(starts)):
        for t in range(queries):
            result[s, 0, t, int(starts[s, first + t]) : first + t + 1] = True
    return result


def softmax(ops: Ops, inputs: Inputs) -> Results:
    for sequences, heads, length, first, queries in SCORES:
        starts, scores = examples(sequences, length), inputs.random(sequences, heads, queries, first + queries) * 4
        weights = inputs.copy(scores)
        ops.softmax(weights, starts, first, 0.3)
        allowed = attended(starts, first, queries)
        assert bool((weights.masked_select(~allowed) == 0).all())
        yield weights, (scores.double() * 0.3).masked_fill(~allowed, -math.inf).softmax(-1)


def softmax_backward(ops: Ops, inputs: Inputs) -> Results:
    for sequences, heads, length, first, queries in SCORES:
        starts, dp = examples(sequences, length), inputs.random(sequences, heads, queries, first + queries)
        scores = leaf(inputs.random(*dp.shape))
        exact = (scores * 0.3).masked_fill(~attended(starts, first, queries), -math.inf).softmax(-1)
        (expected,) = gradients(exact, dp, scores)
        # The operation is given rounded weights, so the formula that autograd confirms for the exact ones is its measure.
        assert torch.allclose(_softmax_gradient(exact, dp), expected, rtol=1e-12, atol=1e-12)
        weights, gradient = exact.detach().to(inputs.dtype), inputs.copy(dp)
        ops.softmax_backward(weights, gradient, starts, first, 0.3)
        yield gradient, _softmax_gradient(weights, dp)


def _softmax_gradient(weights: Tensor, upstream: Tensor) -> Tensor:
    p, dp = weights.double(), upstream.double()
    return 0.3 * p * (dp - (p * dp).sum(-1, keepdim=True))


def glu(forward: Glu, activation: Activation, inputs: Inputs) -> Results:
    for rows, width in ((1, 1), (3, 19), (4, 80)):
        gate, up = inputs.random(rows, width) * 5, inputs.random(rows, width)
        for given in ((gate, up), (inputs.apart(gate), inputs.apart(up))):
            out = inputs.room(rows, width, apart=1)
            forward(*given, out)
            yield out, activation(gate.double()) * up.double()


def glu_backward(backward: Glu, activation: Activation, inputs: Inputs) -> Results:
    for rows, width in ((1, 1), (3, 19), (4, 80)):
        gate, up, upstream = inputs.random(rows, width) * 5, *inputs.random(2, rows, width)
        wide = leaf(gate), leaf(up)
        expected = gradients(activation(wide[0]) * wide[1], upstream, *wide)
        for given in ((gate, up), (inputs.apart(gate), inputs.apart(up))):
            rooms = inputs.room(rows, width, apart=4), inputs.room(rows, width, apart=2)
            backward(*given, upstream, *rooms)
            yield from zip(rooms, expected, strict=True)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def swiglu(ops: Ops, inputs: Inputs) -> Results:
    return glu(ops.swiglu, F.silu, inputs)


def swiglu_backward(ops: Ops, inputs: Inputs) -> Results:
    return glu_backward(ops.swiglu_backward, F.silu, inputs)


def geglu(ops: Ops, inputs: Inputs) -> Results:
    return glu(ops.geglu, gelu_tanh, inputs)


def geglu_backward(ops: Ops, inputs: Inputs) -> Results:
    return glu_backward(ops.geglu_backward, gelu_tanh, inputs)


# The vocabulary in parts, and what is learned: targets in each part, at its ends, and nothing.
PARTS, TARGETS = [33, 1, 16], torch.tensor([0, 32, 33, 34, 49, 5, IGNORED])


def online_logsumexp(ops: Ops, inputs: Inputs) -> Results:
    for parts, targets in ((PARTS, TARGETS), ([50], TARGETS), (PARTS, TARGETS[:1])):
        logits = inputs.random(len(targets), sum(parts)) * 6
        logits[0, 40] = 80  # a maximum that comes late makes what was summed up before it vanish
        largest, total = torch.full((len(targets),), -math.inf), torch.zeros(len(targets))
        at_target, first = torch.full((len(targets),), UNTOUCHED), 0
        for part in torch.split(logits, parts, 1):
            ops.online_logsumexp(inputs.copy(part), first, targets, largest, total, at_target)
            first += part.shape[1]
        yield largest, logits.double().amax(1)
        yield largest + total.log(), logits.double().logsumexp(1)
        learned = targets != IGNORED
        yield at_target[learned], logits[learned, targets[learned]].double()
        assert bool((at_target[~learned] == UNTOUCHED).all())


def cross_entropy_backward(ops: Ops, inputs: Inputs) -> Results:
    logits, row_scale = inputs.random(len(TARGETS), sum(PARTS)) * 3, inputs.wide(len(TARGETS))
    wide = leaf(logits)
    losses = F.cross_entropy(wide, TARGETS, ignore_index=IGNORED, reduction="none")
    (expected,) = gradients(losses, row_scale, wide)
    log_total, first = logits.double().logsumexp(1).float(), 0
    learned = TARGETS != IGNORED  # the head gives it no others
    for part, wanted in zip(torch.split(logits, PARTS, 1), torch.split(expected, PARTS, 1), strict=True):
        room = inputs.copy(part[learned])
        ops.cross_entropy_backward(room, first, TARGETS[learned], log_total[learned], row_scale[learned])
        yield room, wanted[learned]
        first += part.shape[1]


OPERATIONS: list[Callable[[Ops, Inputs], Results]] = [
    rms_norm, rms_norm_backward, split_heads, merge_heads, softmax, softmax_backward, swiglu, swiglu_backward,
    geglu, geglu_backward, online_logsumexp, cross_entropy_backward,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_equals_its_definition_in_float64_and_writes_nothing_else(
    ops: Ops, operation: Callable[[Ops, Inputs], Results], dtype: str
) -> None:
    inputs = Inputs(DTYPES[dtype])
    for got, expected in operation(ops, inputs):
        assert got.shape == expected.shape
        # Numbers that stay float32 are held to float32.
        allowed = ONE_OPERATION[str(got.dtype).removeprefix("torch.")]
        size = max(1.0, float(expected.abs().max()))
        bound = allowed["rtol"] * expected.abs() + allowed["atol"] * size
        assert bool(((got.double() - expected).abs() <= bound).all())
    inputs.assert_nothing_else_is_written()


def test_every_operation_of_the_interface_is_tested() -> None:
    named = {name for name, value in vars(Ops).items() if callable(value) and not name.startswith("_")}
    assert named == {operation.__name__ for operation in OPERATIONS} | {"dequantize"}


def quantized(rows: int, columns: int, bits: int, block_size: int, symmetric: bool) -> QuantizedMatrix:
    weight = np.random.default_rng(rows * columns).normal(0, 1, (rows, columns)).astype(np.float32)
    weight[0] = 0  # a row of zeros has a scale of 0
    return quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric)


def same_bits(left: Tensor, right: Tensor) -> bool:
    assert left.dtype == right.dtype
    whole = {4: torch.int32, 2: torch.int16}[left.itemsize]
    return torch.equal(left.contiguous().view(whole), right.contiguous().view(whole))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantize_equals_the_reference_bit_for_bit_or_its_one_rounding(
    ops: Ops, bits: int, symmetric: bool, dtype: str
) -> None:
    # whole blocks, a short last one, odd and even counts of them, one row
    for rows, columns in ((5, 32), (7, 64), (3, 172), (4, 33), (6, 160), (1, 31), (2, 1)):
        for block_size in (32, 64, 128):
            matrix = quantized(rows, columns, bits, block_size, symmetric)
            expected = torch.from_numpy(dequantize(matrix).copy()).to(DTYPES[dtype])
            for begin, end in ((0, rows), (rows // 2, rows), (0, 1), (1, 1)):
                inputs = Inputs(DTYPES[dtype])
                out = inputs.room(end - begin, columns, apart=3)
                ops.dequantize(PackedMatrix.of(matrix, CPU), begin, end, out)
                assert same_bits(out, expected[begin:end])
                inputs.assert_nothing_else_is_written()


@pytest.mark.parametrize("bits", [4, 8])
def test_every_nan_stays_nan_when_it_is_rounded(ops: Ops, bits: int) -> None:
    # Rounded as if it were a number, a NaN of all ones would become -0.
    scales = torch.tensor([[0x7FFFFFFF], [0x7FC00000], [0x7F800001], [-1]], dtype=torch.int32).view(torch.float32)
    matrix = PackedMatrix(torch.full((4, 1, 4 * bits), 0x12, dtype=torch.uint8), scales, None, 32, bits)
    out = torch.zeros(4, 32, dtype=torch.bfloat16)
    ops.dequantize(matrix, 0, 4, out)
    assert bool(out.isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_among_the_inputs_makes_its_row_nan_and_no_other(ops: Ops, dtype: str) -> None:
    inputs = Inputs(DTYPES[dtype])
    x, other = inputs.random(3, 40), inputs.random(3, 40)
    x[1, 17] = math.nan

    def check(result: Tensor) -> None:
        assert result[1].isnan().any() and not result[[0, 2]].isnan().any()

    out, second = inputs.room(3, 40), inputs.room(3, 40)
    ops.rms_norm(x, torch.ones(40), EPS, out)
    check(out)
    for forward, backward in ((ops.swiglu, ops.swiglu_backward), (ops.geglu, ops.geglu_backward)):
        forward(x, other, out)
        check(out)
        backward(other, other, x, out, second)
        check(out)
        check(second)
    weights = x.clone().view(3, 1, 1, 40)
    ops.softmax(weights, torch.zeros(3, 40, dtype=torch.int64), 39, 1.0)
    check(weights)
    largest, total, at_target = torch.full((3,), -math.inf), torch.zeros(3), torch.zeros(3)
    ops.online_logsumexp(x, 0, torch.tensor([1, 2, 3]), largest, total, at_target)
    check((largest + total.log() - at_target)[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_that_is_not_attended_to_may_be_anything(ops: Ops, dtype: str) -> None:
    scores = Inputs(DTYPES[dtype]).random(1, 1, 2, 6)
    starts, other = torch.tensor([[0, 0, 2, 2, 2, 2]]), scores.clone()
    other[0, 0, :, :2] = math.nan
    other[0, 0, 0, 5] = math.inf
    for weights in (scores, other):
        ops.softmax(weights, starts, 4, 0.5)
    assert torch.equal(scores, other)
