"""`Ops` in plain torch, on any device."""

# letters as in `ops`

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from fedlora_client.ops.ops import Rope
from fedlora_client.ops.packed import PackedMatrix

# Numbers that are widened to float32 at a time on a CPU: activations stay in its cache, a table look-up wants longer runs.
SLICE_ELEMENTS, WEIGHT_SLICE_ELEMENTS = 1 << 17, 1 << 20

GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


class PlainOps:
    """The reference: slower than the kernels, right everywhere."""

    name = "plain torch"
    rows = 1024

    def dequantize(self, matrix: PackedMatrix, begin: int, end: int, out: Tensor) -> None:
        for rows in _slices(out, WEIGHT_SLICE_ELEMENTS):
            out[rows].copy_(_float32(matrix, slice(begin + rows.start, begin + rows.stop)))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        for rows in _slices(x):
            wide = x[rows].float()
            out[rows].copy_((wide * _inverse_rms(wide, eps)).mul_(weight))

    def rms_norm_backward(self, x: Tensor, weight: Tensor, eps: float, dy: Tensor, dx: Tensor) -> None:
        for rows in _slices(x):
            wide = x[rows].float()
            inverse = _inverse_rms(wide, eps)
            normal, scaled = wide * inverse, dy[rows] * weight
            scaled -= normal * (normal * scaled).mean(-1, keepdim=True)
            dx[rows].copy_(scaled.mul_(inverse).add_(dx[rows]))

    def split_heads(self, rows: Tensor, rope: Rope | None, out: Tensor) -> None:
        sequences, count, length, size = out.shape
        _rotate(_as_heads(rows, sequences, length, count, size), rope, 1, out)

    def merge_heads(self, heads: Tensor, rope: Rope | None, out: Tensor) -> None:
        sequences, count, length, size = heads.shape
        _rotate(heads, rope, -1, _as_heads(out, sequences, length, count, size))

    def softmax(self, scores: Tensor, starts: Tensor, first: int, scale: float) -> None:
        for sequence, begin in zip(scores, starts, strict=True):
            hidden = _hidden(begin, first, scores.shape[2])
            for some in _slices(sequence):
                wide = sequence[some].float().mul_(scale).masked_fill_(hidden, -math.inf)
                sequence[some].copy_(wide.softmax(-1))

    def softmax_backward(self, weights: Tensor, gradient: Tensor, starts: Tensor, first: int, scale: float) -> None:
        weights, gradient = weights.flatten(0, 1), gradient.flatten(0, 1)
        for some in _slices(weights):
            p, dp = weights[some].float(), gradient[some]
            gradient[some].copy_((dp - (p * dp).sum(-1, keepdim=True)).mul_(p).mul_(scale))

    def swiglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        for rows in _slices(gate):
            wide = gate[rows].float()
            out[rows].copy_(torch.sigmoid(wide).mul_(wide).mul_(up[rows]))

    def swiglu_backward(self, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
        for rows in _slices(gate):
            wide = gate[rows].float()
            share = torch.sigmoid(wide)
            silu = wide * share
            d_up[rows].copy_(silu * gradient[rows])
            # silu'(g) = s + silu(g) (1 - s)
            d_gate[rows].copy_(silu.mul_(1 - share).add_(share).mul_(gradient[rows]).mul_(up[rows]))

    def geglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        for rows in _slices(gate):
            wide = gate[rows].float()
            out[rows].copy_(_gelu_share(wide).mul_(wide).mul_(up[rows]))

    def geglu_backward(self, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
        for rows in _slices(gate):
            wide = gate[rows].float()
            share = _gelu_share(wide)
            gelu = wide * share
            d_up[rows].copy_(gelu * gradient[rows])
            # gelu'(g) = s + gelu(g) (1 - s) z'(g) for s = sigmoid(z(g))
            slope = wide.square_().mul_(3 * GELU_CUBE).add_(1).mul_(2 * GELU_SCALE)
            d_gate[rows].copy_(gelu.mul_(1 - share).mul_(slope).add_(share).mul_(gradient[rows]).mul_(up[rows]))

    def online_logsumexp(
        self, logits: Tensor, first: int, targets: Tensor, largest: Tensor, total: Tensor, at_target: Tensor
    ) -> None:
        for some in _slices(logits):
            wide = logits[some].float()
            peak = torch.maximum(largest[some], wide.amax(-1))
            total[some] = total[some] * torch.exp(largest[some] - peak) + torch.exp(wide - peak[:, None]).sum(-1)
            largest[some] = peak
        rows, columns = _targets_within(targets, first, logits.shape[1])
        at_target[rows] = logits[rows, columns].float()

    def cross_entropy_backward(
        self, logits: Tensor, first: int, targets: Tensor, log_total: Tensor, row_scale: Tensor
    ) -> None:
        rows, columns = _targets_within(targets, first, logits.shape[1])
        at_target = (torch.exp(logits[rows, columns] - log_total[rows]) - 1) * row_scale[rows]
        for some in _slices(logits):
            wide = (logits[some] - log_total[some, None]).exp_()
            logits[some].copy_(wide.mul_(row_scale[some, None]))
        logits[rows, columns] = at_target.to(logits.dtype)


def _slices(tensor: Tensor, elements: int = SLICE_ELEMENTS) -> Iterator[slice]:
    """Parts of the first dimension that fit a cache; on a GPU all of it."""
    count = len(tensor)
    step = max(1, count)
    if tensor.device.type == "cpu" and count:
        step = max(1, elements * count // max(1, tensor.numel()))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _float32(matrix: PackedMatrix, rows: slice) -> Tensor:
    """W[rows] [n, I] in float32."""
    scales = matrix.scales[rows]
    middle = 1 << (matrix.bits - 1) if matrix.zeros is None else 0
    codes = _codes(matrix.qweight[rows], matrix.bits, middle).view(*scales.shape, -1)
    if matrix.zeros is not None:
        zeros = matrix.zeros[rows] if matrix.bits == 8 else _nibbles(matrix.zeros[rows])
        codes -= zeros[:, : scales.shape[1], None]
    codes *= scales[..., None]
    return codes.flatten(1)[:, : matrix.in_features]


def embedding_rows(matrix: PackedMatrix, tokens: Tensor, out: Tensor) -> None:
    """out = W[tokens]; tokens int64 [N], out [N, I]"""
    zeros = None if matrix.zeros is None else matrix.zeros[tokens]
    gathered = PackedMatrix(matrix.qweight[tokens], matrix.scales[tokens], zeros, matrix.in_features, matrix.bits)
    out.copy_(_float32(gathered, slice(None)))


def _codes(packed: Tensor, bits: int, zero: int) -> Tensor:
    """The codes minus `zero` in a row, in float32. Four 4-bit codes at a time come from a table that two bytes index."""
    if bits == 8:
        return packed.to(torch.float32).sub_(zero)
    pairs = packed.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF).flatten()
    return torch.index_select(_table(zero, packed.device), 0, pairs).view(torch.float32)


def _nibbles(packed: Tensor) -> Tensor:
    return torch.stack((packed & 0x0F, packed >> 4), -1).flatten(-2)


@cache
def _table(zero: int, device: torch.device) -> Tensor:
    """[65536] values of 16 bytes: the four codes that two bytes hold, minus `zero`, in float32."""
    pair = torch.arange(1 << 16)
    codes = torch.stack([(pair >> shift) & 0x0F for shift in (0, 4, 8, 12)], 1).float() - zero
    return codes.view(torch.complex128).flatten().to(device)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _gelu_share(x: Tensor) -> Tensor:
    """gelu(x) / x = (1 + tanh(z / 2)) / 2 = sigmoid(z)"""
    return torch.sigmoid((x.square().mul_(GELU_CUBE).add_(1)).mul_(x).mul_(2 * GELU_SCALE))


def _rotate(x: Tensor, rope: Rope | None, sign: int, out: Tensor) -> None:
    """out = x rotated; both [S, heads, T, D]"""
    if rope is None:
        out.copy_(x)
        return
    tables = (table.view(x.shape[0], x.shape[2], -1) for table in rope)
    half = x.shape[3] // 2
    for here, there, cos, sin in zip(x, out, *tables, strict=True):
        first, second = here.float().chunk(2, -1)
        there[..., :half] = first * cos - second * (sin * sign)
        there[..., half:] = second * cos + first * (sin * sign)


def _as_heads(rows: Tensor, sequences: int, length: int, count: int, size: int) -> Tensor:
    """Rows [N, heads D], which may lie apart, as [S, heads, T, D]."""
    apart = rows.stride(0)
    strides = (length * apart, size, apart, 1)
    return rows.as_strided((sequences, count, length, size), strides, rows.storage_offset())


def _hidden(starts: Tensor, first: int, queries: int) -> Tensor:
    """bool [T', P]: which of the keys a query of one sequence does not see."""
    keys = torch.arange(first + queries, device=starts.device)
    query = torch.arange(first, first + queries, device=starts.device)[:, None]
    return (keys < starts[first : first + queries, None]) | (keys > query)


def _targets_within(targets: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the targets among the tokens from `first` to `first + count`."""
    inside = (targets >= first) & (targets < first + count)
    rows = inside.nonzero().flatten()
    return rows, targets[rows] - first
