"""`Ops` by the compiled kernels, for float32 and bfloat16 tensors on a CPU."""

# letters as in `ops`

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from fedlora_client.ops.ops import Rope
from fedlora_client.ops.packed import PackedMatrix

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_P, _N, _F = c_void_p, c_int64, c_float
_ARGUMENTS = {
    "dequantize": (_P, _P, _P, _N, _N, _N, _N, _P, _N),
    "rms_norm": (_P, _P, _F, _N, _N, _P, _N),
    "rms_norm_backward": (_P, _P, _F, _P, _N, _N, _P),
    "split_heads": (_P, _N, _P, _P, _N, _N, _N, _N, _P),
    "merge_heads": (_P, _P, _P, _N, _N, _N, _N, _P, _N),
    "softmax": (_P, _P, _N, _N, _N, _N, _N, _F),
    "softmax_backward": (_P, _P, _P, _N, _N, _N, _N, _N, _F),
    "swiglu": (_P, _N, _P, _N, _N, _N, _P, _N),
    "swiglu_backward": (_P, _N, _P, _N, _P, _N, _N, _P, _N, _P, _N),
    "geglu": (_P, _N, _P, _N, _N, _N, _P, _N),
    "geglu_backward": (_P, _N, _P, _N, _P, _N, _N, _P, _N, _P, _N),
    "online_logsumexp": (_P, _N, _N, _N, _P, _P, _P, _P),
    "cross_entropy_backward": (_P, _N, _N, _N, _P, _P, _P),
}


class NativeOps:
    """The fast path. A tensor that the kernels do not read as it lies is our own bug, and an AssertionError."""

    rows = 512

    def __init__(self, library: Path, name: str) -> None:
        self.name, self.library = name, library.resolve()  # by its own name, where it was opened by another
        loaded = ctypes.CDLL(str(library))
        self._functions = {}
        for function, arguments in _ARGUMENTS.items():
            for dtype, suffix in _DTYPES.items():
                pointer = getattr(loaded, f"{function}_{suffix}")
                pointer.argtypes, pointer.restype = arguments, None
                self._functions[function, dtype] = pointer

    def dequantize(self, matrix: PackedMatrix, begin: int, end: int, out: Tensor) -> None:
        assert 0 <= begin <= end <= matrix.out_features and out.shape == (end - begin, matrix.in_features)
        zeros = None if matrix.zeros is None else _at(matrix.zeros[begin:])
        self._functions["dequantize", out.dtype](
            _at(matrix.qweight[begin:]), _at(matrix.scales[begin:]), zeros, end - begin, matrix.in_features,
            matrix.block_size, matrix.bits, *_rows(out),
        )  # fmt: skip

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        assert x.dtype == out.dtype and x.shape == out.shape
        self._functions["rms_norm", x.dtype](_at(x), _at(weight), eps, *x.shape, *_rows(out))

    def rms_norm_backward(self, x: Tensor, weight: Tensor, eps: float, dy: Tensor, dx: Tensor) -> None:
        assert x.dtype == dy.dtype == dx.dtype and x.shape == dy.shape == dx.shape
        self._functions["rms_norm_backward", x.dtype](_at(x), _at(weight), eps, _at(dy), *x.shape, _at(dx))

    def split_heads(self, rows: Tensor, rope: Rope | None, out: Tensor) -> None:
        assert rows.dtype == out.dtype and rows.numel() == out.numel()
        self._functions["split_heads", out.dtype](*_rows(rows), *_rope(rope, out), *out.shape, _at(out))

    def merge_heads(self, heads: Tensor, rope: Rope | None, out: Tensor) -> None:
        assert heads.dtype == out.dtype and heads.numel() == out.numel()
        self._functions["merge_heads", heads.dtype](_at(heads), *_rope(rope, heads), *heads.shape, *_rows(out))

    def softmax(self, scores: Tensor, starts: Tensor, first: int, scale: float) -> None:
        self._functions["softmax", scores.dtype](_at(scores), _at(starts), *_scores(scores, starts), first, scale)

    def softmax_backward(self, weights: Tensor, gradient: Tensor, starts: Tensor, first: int, scale: float) -> None:
        assert weights.dtype == gradient.dtype and weights.shape == gradient.shape
        self._functions["softmax_backward", weights.dtype](
            _at(weights), _at(gradient), _at(starts), *_scores(weights, starts), first, scale
        )

    def swiglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        self._glu("swiglu", gate, up, out)

    def swiglu_backward(self, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
        self._glu_backward("swiglu_backward", gate, up, gradient, d_gate, d_up)

    def geglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        self._glu("geglu", gate, up, out)

    def geglu_backward(self, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
        self._glu_backward("geglu_backward", gate, up, gradient, d_gate, d_up)

    def online_logsumexp(
        self, logits: Tensor, first: int, targets: Tensor, largest: Tensor, total: Tensor, at_target: Tensor
    ) -> None:
        self._functions["online_logsumexp", logits.dtype](
            _at(logits), *logits.shape, first, _at(targets), _at(largest), _at(total), _at(at_target)
        )

    def cross_entropy_backward(
        self, logits: Tensor, first: int, targets: Tensor, log_total: Tensor, row_scale: Tensor
    ) -> None:
        self._functions["cross_entropy_backward", logits.dtype](
            _at(logits), *logits.shape, first, _at(targets), _at(log_total), _at(row_scale)
        )

    def _glu(self, function: str, gate: Tensor, up: Tensor, out: Tensor) -> None:
        assert gate.dtype == up.dtype == out.dtype and gate.shape == up.shape == out.shape
        self._functions[function, out.dtype](*_rows(gate), *_rows(up), *out.shape, *_rows(out))

    def _glu_backward(
        self, function: str, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor
    ) -> None:
        assert gate.dtype == up.dtype == gradient.dtype == d_gate.dtype == d_up.dtype
        assert gate.shape == up.shape == gradient.shape == d_gate.shape == d_up.shape
        self._functions[function, gate.dtype](
            *_rows(gate), *_rows(up), _at(gradient), *gate.shape, *_rows(d_gate), *_rows(d_up)
        )


def _at(tensor: Tensor) -> int:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


def _rows(tensor: Tensor) -> tuple[int, int]:
    """Where the rows of a matrix begin, and how far they lie apart."""
    assert tensor.stride(1) == 1 and tensor.device.type == "cpu"
    return tensor.data_ptr(), tensor.stride(0)


def _rope(rope: Rope | None, heads: Tensor) -> tuple[int | None, int | None]:
    if rope is None:
        return None, None
    half = (heads.shape[0] * heads.shape[2], heads.shape[3] // 2)
    assert all(table.shape == half and table.dtype == torch.float32 for table in rope)
    return _at(rope[0]), _at(rope[1])


def _scores(scores: Tensor, starts: Tensor) -> tuple[int, int, int, int]:
    sequences, heads, queries, _ = scores.shape
    return sequences, starts.shape[1], heads, queries
