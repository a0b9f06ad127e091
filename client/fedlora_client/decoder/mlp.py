"""The MLP of a block, forward and backward. What is in brackets only some families have.

y = h + [norm](down(activation(gate(m)) * up(m)))        m = norm(h)
"""

# N rows, H hidden size, F intermediate size, E extra columns: see `linear`

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from fedlora.family import DecoderShape, layer_name
from torch import Tensor

from fedlora_client.decoder.projections import XA, Projections
from fedlora_client.decoder.residual_output import ResidualOutput
from fedlora_client.layers.batch import Batch
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.workspace import Workspace


@dataclass(slots=True)
class FreshMlp:
    """What need not be computed again by a backward that follows at once: it holds until the next block's forward."""

    normed: Tensor  # [N, H + E], the input of gate and up
    gated: Tensor  # [N, F + E], the input of down


@dataclass(slots=True)
class MlpActivations:
    """What a forward leaves for its backward."""

    gate: Tensor  # [N, F], rows of any stride
    up: Tensor  # [N, F], rows of any stride
    out: Tensor | None  # [N, H], what down gives, where a norm follows it
    xA: XA
    fresh: FreshMlp | None


class Mlp:
    """Frozen, as its block."""

    def __init__(
        self, layer: int, shape: DecoderShape, projections: Projections, norms: Mapping[str, Tensor], ops: Ops
    ) -> None:
        prefix, names = layer_name(layer), shape.norms
        self._projections, self._ops, self._eps, self._width = (
            projections,
            ops,
            shape.rms_norm_eps,
            shape.intermediate_size,
        )
        self._glu, self._glu_backward = (
            (ops.geglu, ops.geglu_backward) if shape.activation == "gelu_tanh" else (ops.swiglu, ops.swiglu_backward)
        )
        self._into = projections.readers("gate_up_proj" if shape.joined_modules else "gate_proj")
        self._before = norms[f"{prefix}.{names.before_mlp}"]
        after = norms[f"{prefix}.{names.after_mlp}"] if names.after_mlp else None
        self._output = ResidualOutput("down_proj", projections, after, shape.rms_norm_eps, ops)

    def forward(
        self,
        h: Tensor,  # [N, H]
        batch: Batch,
        space: Workspace,
        saved: Workspace,  # of what the backward needs; `space` itself: it is fresh
        y: Tensor | None,  # [N, H], the result; None: only what the backward needs
    ) -> MlpActivations:
        """y, and what the backward needs: it holds until the next use of `saved`."""
        projections, xA = self._projections, XA()
        normed = self._normed(h, batch, space)
        both: list[Tensor] = []
        for name in self._into:
            rows = saved.get(name, len(h), projections.out_features(name))
            projections.forward(name, normed, batch, space, xA, rows, stays=True)
            both += torch.split(rows, self._width, 1)
        gate, up = both
        gated = self._gated(gate, up, batch, space)
        out = self._output.forward(gated, h, batch, space, saved, xA, y)
        fresh = FreshMlp(normed, gated) if saved is space else None
        return MlpActivations(gate, up, out, xA, fresh)

    def backward(
        self,
        h: Tensor,  # [N, H], the input of the forward
        kept: MlpActivations,
        gradient: Tensor,  # [N, H], in y; becomes that in h
        batch: Batch,
        space: Workspace,
    ) -> None:
        """Add the gradients of the adapters, and turn the gradient in the output into that in the input."""
        projections, ops, fresh = self._projections, self._ops, kept.fresh
        d_gated = space.get("d_gated", len(h), self._width)
        gated = fresh.gated if fresh else self._gated(kept.gate, kept.up, batch, space)
        self._output.backward(gated, kept.out, gradient, batch, space, kept.xA, d_gated)
        d_outs = {name: projections.gradient_of(name, space, batch) for name in self._into}
        both: list[Tensor] = []
        for name, dy in d_outs.items():
            both += torch.split(dy[:, : projections.out_features(name)], self._width, 1)
        d_gate, d_up = both
        self._glu_backward(kept.gate, kept.up, d_gated, d_gate, d_up)
        normed, d_normed = fresh.normed if fresh else self._normed(h, batch, space), space.get("d_normed", *h.shape)
        for number, (name, dy) in enumerate(d_outs.items()):
            projections.backward(name, normed, kept.xA, dy, batch, space, d_normed, add=number > 0)
        ops.rms_norm_backward(h, self._before, self._eps, d_normed, gradient)

    def _normed(self, h: Tensor, batch: Batch, space: Workspace) -> Tensor:
        normed = self._projections.input(self._into[0], space, batch)
        self._ops.rms_norm(h, self._before, self._eps, normed[:, : h.shape[1]])
        return normed

    def _gated(self, gate: Tensor, up: Tensor, batch: Batch, space: Workspace) -> Tensor:
        gated = self._projections.input("down_proj", space, batch)
        self._glu(gate, up, gated[:, : self._width])
        return gated
