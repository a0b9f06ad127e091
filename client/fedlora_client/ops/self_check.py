"""Do the compiled kernels agree with plain torch? Asked once a process, before they are trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from fedlora import native
from fedlora.native import Comparison
from torch import Tensor

from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.plain_ops import PlainOps

# Two roundings of the dtype, relative to the largest value.
_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}

Run = Callable[[Ops], tuple[Tensor, ...]]


def disagreement(ops: Ops) -> str | None:
    """Which operation differs from plain torch by more than rounding, and by how much; None where all agree."""
    return native.disagreement(_comparisons(ops), "plain torch")


def _comparisons(ops: Ops) -> Iterator[Comparison]:
    plain = PlainOps()
    for dtype, tolerance in _TOLERANCE.items():
        for operation, run in _runs(dtype):
            for got, expected in zip(run(ops), run(plain), strict=True):
                yield Comparison(
                    what=f"{operation} in {dtype}",
                    got=got.float().numpy(),
                    expected=expected.float().numpy(),
                    tolerance=tolerance,
                )


def _runs(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
    """(operation, what runs it on inputs that are the same each time)"""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def apart(rows: int, columns: int, more: int) -> Tensor:
        """Rows that lie `more` numbers further apart than they are long, as those of a joined module."""
        return random(rows, columns + more)[:, more // 2 : more // 2 + columns]

    def code(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    # dequantize: 3 blocks of 32, the last one short
    scales = torch.randn(5, 3, generator=generator)
    for bits, zeros in ((4, None), (4, code(5, 2)), (8, None), (8, code(5, 3))):
        matrix = PackedMatrix(code(5, 3, 4 * bits), scales, zeros, 83, bits)

        def dequantize(ops: Ops, matrix: PackedMatrix = matrix) -> tuple[Tensor, ...]:
            out = torch.zeros(4, 90, dtype=dtype)
            ops.dequantize(matrix, 1, 5, out[:, :83])
            return (out,)

        yield f"dequantize ({bits} bits)", dequantize

    x, dy, dx, weight = random(3, 37), random(3, 37), random(3, 37), random(37).float()

    def rms_norm(ops: Ops) -> tuple[Tensor, ...]:
        out, gradient = torch.zeros(3, 40, dtype=dtype), dx.clone()
        ops.rms_norm(x, weight, 1e-5, out[:, :37])
        ops.rms_norm_backward(x, weight, 1e-5, dy, gradient)
        return out, gradient

    yield "rms_norm", rms_norm
    rows, angles = apart(2 * 5, 4 * 6, 3), random(2 * 5, 3).float()

    def heads(ops: Ops) -> tuple[Tensor, ...]:
        results = []
        for rope in (None, (angles.cos(), angles.sin())):
            split, merged = torch.zeros(2, 4, 5, 6, dtype=dtype), torch.zeros(10, 30, dtype=dtype)
            ops.split_heads(rows, rope, split)
            ops.merge_heads(split, rope, merged[:, :24])
            results += [split, merged]
        return tuple(results)

    yield "split_heads", heads
    scores, upstream = random(2, 4, 3, 5), random(2, 4, 3, 5)
    starts = torch.tensor([[0, 0, 2, 2, 4], [0, 1, 1, 1, 1]])

    def softmax(ops: Ops) -> tuple[Tensor, ...]:
        weights, gradient = scores.clone(), upstream.clone()
        ops.softmax(weights, starts, 2, 0.5)
        ops.softmax_backward(weights, gradient, starts, 2, 0.5)
        return weights, gradient

    yield "softmax", softmax
    gate, up, down = apart(3, 19, 5), apart(3, 19, 2), random(3, 19)

    def swiglu(ops: Ops) -> tuple[Tensor, ...]:
        out, d_gate, d_up = (torch.zeros(3, 25, dtype=dtype) for _ in range(3))
        ops.swiglu(gate, up, out[:, :19])
        ops.swiglu_backward(gate, up, down, d_gate[:, :19], d_up[:, :19])
        return out, d_gate, d_up

    yield "swiglu", swiglu

    def geglu(ops: Ops) -> tuple[Tensor, ...]:
        out, d_gate, d_up = (torch.zeros(3, 25, dtype=dtype) for _ in range(3))
        ops.geglu(gate, up, out[:, :19])
        ops.geglu_backward(gate, up, down, d_gate[:, :19], d_up[:, :19])
        return out, d_gate, d_up

    yield "geglu", geglu
    logits, targets, row_scale = random(4, 33), torch.tensor([3, 40, 32, 7]), random(4).float()

    def loss(ops: Ops) -> tuple[Tensor, ...]:
        largest, total, at_target = torch.full((4,), -torch.inf), torch.zeros(4), torch.zeros(4)
        ops.online_logsumexp(logits, 0, targets, largest, total, at_target)
        ops.online_logsumexp(logits + 1, 33, targets, largest, total, at_target)
        gradient = logits.clone()
        ops.cross_entropy_backward(gradient, 0, targets, largest + total.log(), row_scale)
        return largest + total.log(), at_target, gradient

    yield "cross_entropy_backward", loss
