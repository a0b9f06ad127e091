"""The end of attention or of the MLP: y = residual + [norm](module(x)); the norm only some families have."""

# N rows, H hidden size, I in features, E extra columns: see `linear`

from __future__ import annotations

from torch import Tensor

from fedlora_client.decoder.projections import XA, Projections
from fedlora_client.layers.batch import Batch
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.workspace import Workspace


class ResidualOutput:
    """Frozen, as its block."""

    def __init__(self, name: str, projections: Projections, norm: Tensor | None, eps: float, ops: Ops) -> None:
        self._name, self._projections, self._norm, self._eps, self._ops = name, projections, norm, eps, ops

    def forward(
        self,
        x: Tensor,  # [N, I + E]
        residual: Tensor,  # [N, H]
        batch: Batch,
        space: Workspace,
        saved: Workspace,
        xA: XA,
        y: Tensor | None,  # [N, H]; None: only what the backward needs
    ) -> Tensor | None:
        """y, and what stands before the norm [N, H] where there is one: the backward needs it."""
        if self._norm is None:
            self._projections.forward(self._name, x, batch, space, xA, y, residual=residual)
            return None
        unnormed = saved.get(f"{self._name}.unnormed", *residual.shape)
        self._projections.forward(self._name, x, batch, space, xA, unnormed)
        if y is not None:
            self._ops.rms_norm(unnormed, self._norm, self._eps, y)
            y += residual
        return unnormed

    def backward(
        self,
        x: Tensor,  # [N, I + E]
        unnormed: Tensor | None,  # of the forward
        gradient: Tensor,  # [N, H], in y; that in the residual has it as a part, and stays with the caller
        batch: Batch,
        space: Workspace,
        xA: XA,
        dx: Tensor,  # [N, I]: overwritten with the gradient in the input
    ) -> None:
        """dx, and the gradients of the module's adapters."""
        d_out = self._projections.gradient_of(self._name, space, batch)
        if self._norm is not None and unnormed is not None:
            through = space.get("d_normed", *gradient.shape).zero_()
            self._ops.rms_norm_backward(unnormed, self._norm, self._eps, gradient, through)
            gradient = through
        d_out[:, : gradient.shape[1]] = gradient
        self._projections.backward(self._name, x, xA, d_out, batch, space, dx)
