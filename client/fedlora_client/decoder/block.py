"""One block of a decoder, forward and backward, over packed weights: attention, then the MLP."""

# N rows, H hidden size

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.family import DecoderShape
from torch import Tensor

from fedlora_client.decoder.mlp import Mlp, MlpActivations
from fedlora_client.decoder.projections import Projections
from fedlora_client.decoder.self_attention import AttentionActivations, SelfAttention
from fedlora_client.layers.batch import Batch
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.workspace import Workspace


@dataclass(slots=True)
class Activations:
    """What a forward leaves for the backward of its block."""

    attention: AttentionActivations
    h: Tensor  # [N, H]
    mlp: MlpActivations


class Block:
    """Frozen: any number of threads may share one, each with a workspace of its own."""

    def __init__(
        self,
        layer: int,
        shape: DecoderShape,
        matrices: Mapping[str, PackedMatrix],
        norms: Mapping[str, Tensor],
        biases: Mapping[str, Tensor],  # {module: [O]}, of the compute dtype
        ops: Ops,
    ) -> None:
        projections = Projections(layer, shape, matrices, biases, ops)
        self._attention = SelfAttention(layer, shape, projections, norms, ops)
        self._mlp = Mlp(layer, shape, projections, norms, ops)

    def forward(
        self,
        x: Tensor,  # [N, H]
        batch: Batch,
        space: Workspace,
        out: Tensor | None,  # [N, H]; None: only what the backward needs
        keep: Workspace | None = None,
    ) -> Activations:
        """out = y. What is returned holds until the next use of `keep`, by default of `space`."""
        saved = keep or space
        h = saved.get("h", *x.shape)
        attention = self._attention.forward(x, batch, space, saved, h)
        return Activations(attention, h, self._mlp.forward(h, batch, space, saved, out))

    def backward(
        self,
        x: Tensor,  # [N, H], the input of the forward
        kept: Activations,
        gradient: Tensor,  # [N, H], in y; becomes that in x
        batch: Batch,
        space: Workspace,
        *,
        is_last: bool,  # nothing below trains: the gradient in x is left unfinished
    ) -> None:
        """Add the gradients of the block's adapters, and turn the gradient in its output into that in its input."""
        self._mlp.backward(kept.h, kept.mlp, gradient, batch, space)
        self._attention.backward(x, kept.attention, gradient, batch, space, is_last=is_last)
