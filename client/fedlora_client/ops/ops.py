"""What the step computes besides matrix products: one interface, in plain torch and in C.

Products are torch's own. Everything else of a step is here, written to run in place or into a given tensor, so that an
implementation allocates nothing of the size of an activation. `plain_ops` is the reference and runs on any device;
`kernels` is the same in C. Arithmetic is in float32; a result is rounded once, to the dtype of the tensor it goes to.
"""

# S sequences, T tokens of each, N = S T rows, H hidden size, F intermediate size, V vocabulary
# Q query heads, K key/value heads, D head size, O out features, I in features

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fedlora_client.ops.packed import PackedMatrix

Rope = tuple[Tensor, Tensor]  # m cos and m sin of each row's position, float32 [N, D / 2], m the magnitude


class Ops(Protocol):
    """Tensors are of the compute dtype where nothing else is said, and contiguous.

    An `out` or another matrix that is only written may have rows that lie further apart.
    """

    name: str
    rows: int  # of a product on a CPU, beyond which what is done once for a weight is nothing beside it

    def dequantize(
        self,
        matrix: PackedMatrix,  # [O, I]
        begin: int,
        end: int,
        out: Tensor,  # [end - begin, I]
    ) -> None:
        """out = W[begin:end]"""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight; x, out [N, H], weight float32 [H] (arXiv:1910.07467)"""
        ...

    def rms_norm_backward(self, x: Tensor, weight: Tensor, eps: float, dy: Tensor, dx: Tensor) -> None:
        """dx += the gradient in x for the gradient dy in the norm's output; all [N, H]"""
        ...

    def split_heads(
        self,
        rows: Tensor,  # [N, heads D], which may lie further apart
        rope: Rope | None,  # None: no rotation
        out: Tensor,  # [S, heads, T, D]
    ) -> None:
        """Rows become heads, rotated by their positions in the half-split form (arXiv:2104.09864)."""
        ...

    def merge_heads(
        self,
        heads: Tensor,  # [S, heads, T, D]
        rope: Rope | None,
        out: Tensor,  # [N, heads D]
    ) -> None:
        """The gradient of `split_heads`, which is its transpose: heads become rows, rotated back."""
        ...

    def softmax(
        self,
        scores: Tensor,  # [S, heads, T', P]: T' queries from `first`, P = first + T' keys
        starts: Tensor,  # int64 [S, T]
        first: int,
        scale: float,
    ) -> None:
        """In place: softmax(scale * scores) over the keys from starts[query] to the query; 0 for all others."""
        ...

    def softmax_backward(self, weights: Tensor, gradient: Tensor, starts: Tensor, first: int, scale: float) -> None:
        """`gradient`, in the softmax's weights, becomes the gradient in the scores, in place."""
        ...

    def swiglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        """out = silu(gate) * up, all [N, F] (arXiv:2002.05202); the rows of gate and up may lie further apart."""
        ...

    def swiglu_backward(self, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
        """d_gate, d_up = the gradients in gate and up for that in the output; all [N, F]"""
        ...

    def geglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        """out = gelu(gate) * up, as `swiglu`; gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (arXiv:1606.08415)"""
        ...

    def geglu_backward(self, gate: Tensor, up: Tensor, gradient: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
        """As `swiglu_backward`."""
        ...

    def online_logsumexp(
        self,
        logits: Tensor,  # [N, V'], of the tokens from `first`
        first: int,
        targets: Tensor,  # int64 [N]
        largest: Tensor,  # float32 [N]
        total: Tensor,  # float32 [N]
        at_target: Tensor,  # float32 [N]
    ) -> None:
        """Take a part of the vocabulary into each row's maximum, sum of exp(logit - maximum) and target's logit.

        log sum exp(logits) = largest + log(total) after the last part (arXiv:1805.02867).
        """
        ...

    def cross_entropy_backward(
        self, logits: Tensor, first: int, targets: Tensor, log_total: Tensor, row_scale: Tensor
    ) -> None:
        """In place: (exp(logits - log_total) - [token is the target]) * row_scale; log_total, row_scale float32 [N]"""
        ...
