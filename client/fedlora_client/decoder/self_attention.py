"""The self-attention of a block, forward and backward. What is in brackets only some families have.

h = x + [norm](o(attention(rope([norm](q(n))), rope([norm](k(n))), v(n))))        n = norm(x)
"""

# S sequences, T tokens of each, N = S T rows, H hidden size, Q query heads, K key/value heads, D head size
# E extra columns: see `linear`

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from fedlora.family import DecoderShape, layer_name
from torch import Tensor

from fedlora_client.decoder.projections import XA, Projections
from fedlora_client.decoder.residual_output import ResidualOutput
from fedlora_client.layers.batch import Batch
from fedlora_client.layers.virtual_tokens import Prefix
from fedlora_client.ops.attention import Heads, Scores, attend, attend_backward
from fedlora_client.ops.ops import Ops, Rope
from fedlora_client.ops.workspace import Workspace


@dataclass(slots=True)
class FreshAttention:
    """What need not be computed again by a backward that follows at once: it holds until the next block's forward."""

    weights: Tensor | None
    normed: Tensor  # [N, H + E], the input of q, k and v


@dataclass(slots=True)
class AttentionActivations:
    """What a forward leaves for its backward."""

    heads: Heads
    unnormed: dict[str, Tensor]  # {"q": [N, Q D], "k": [N, K D]} before their norms, where they have some
    mixed: Tensor  # [N, Q D + E], the input of o
    out: Tensor | None  # [N, H], what o gives, where a norm follows it
    xA: XA
    fresh: FreshAttention | None


class SelfAttention:
    """Frozen, as its block."""

    def __init__(
        self, layer: int, shape: DecoderShape, projections: Projections, norms: Mapping[str, Tensor], ops: Ops
    ) -> None:
        prefix, names = layer_name(layer), shape.norms
        self._layer, self._projections, self._ops = layer, projections, ops
        self._eps, self._head_dim = shape.rms_norm_eps, shape.head_dim
        self._scores = Scores(scale=shape.attention_scale, cap=shape.attention_cap)
        into = projections.readers("qkv_proj" if shape.joined_modules else "q_proj")
        self._into = {name: list(shape.parts()[f"self_attn.{name}"]) for name in into}
        self._before = norms[f"{prefix}.{names.before_attention}"]
        after = norms[f"{prefix}.{names.after_attention}"] if names.after_attention else None
        self._output = ResidualOutput("o_proj", projections, after, shape.rms_norm_eps, ops)
        self._of_heads = {kind: norms[f"{prefix}.self_attn.{kind}_norm"] for kind in "qk" if shape.qk_norm}

    def forward(
        self,
        x: Tensor,  # [N, H]
        batch: Batch,
        space: Workspace,
        saved: Workspace,  # of what the backward needs; `space` itself: it is fresh
        h: Tensor,  # [N, H], the result
    ) -> AttentionActivations:
        """h, and what the backward needs: it holds until the next use of `saved`."""
        projections, xA, unnormed = self._projections, XA(), dict[str, Tensor]()
        normed = self._normed(x, batch, space)
        heads = self._heads(normed, batch, space, saved, xA, unnormed)
        if batch.layout and (prefix := self._prefix(batch)):
            prefix.put_heads(self._layer, heads.k, heads.v, batch.layout)
        mixed, width = projections.input("o_proj", saved, batch), projections.in_features("o_proj")
        weights = attend(heads, batch.first_keys[self._layer], mixed[:, :width], self._scores, self._ops, space)
        out = self._output.forward(mixed, x, batch, space, saved, xA, h)
        fresh = FreshAttention(weights, normed) if saved is space else None
        return AttentionActivations(heads, unnormed, mixed, out, xA, fresh)

    def backward(
        self,
        x: Tensor,  # [N, H], the input of the forward
        kept: AttentionActivations,
        gradient: Tensor,  # [N, H], in h; becomes that in x
        batch: Batch,
        space: Workspace,
        *,
        is_last: bool,  # nothing below trains: the gradient in x is left unfinished
    ) -> None:
        """Add the gradients of the adapters, and turn the gradient in the output into that in the input."""
        projections, ops, fresh = self._projections, self._ops, kept.fresh
        d_mixed = space.get("d_mixed", len(x), projections.in_features("o_proj"))
        self._output.backward(kept.mixed, kept.out, gradient, batch, space, kept.xA, d_mixed)
        d_heads = Heads(*(space.get(f"d_{kind}", *part.shape) for kind, part in zip("qkv", kept.heads, strict=True)))
        attend_backward(
            kept.heads, batch.first_keys[self._layer], d_mixed, d_heads, self._scores, ops, space,
            fresh.weights if fresh else None,
        )  # fmt: skip
        if batch.layout and (prefix := self._prefix(batch)):
            prefix.take_gradients(self._layer, d_heads.k, d_heads.v, batch.layout)
        normed = fresh.normed if fresh else self._normed(x, batch, space)
        d_normed, gradients = space.get("d_normed", *x.shape), zip("qkv", d_heads, strict=True)
        for number, (name, sizes) in enumerate(self._into.items()):
            dy = projections.gradient_of(name, space, batch)
            for out in torch.split(dy[:, : sum(sizes)], sizes, 1):
                kind, part = next(gradients)
                self._merge(kind, part, kept.unnormed.get(kind), batch, space, out)
            projections.backward(name, normed, kept.xA, dy, batch, space, None if is_last else d_normed, add=number > 0)
        if not is_last:
            ops.rms_norm_backward(x, self._before, self._eps, d_normed, gradient)

    @staticmethod
    def _prefix(batch: Batch) -> Prefix | None:
        virtual = batch.lora.virtual if batch.lora else None
        return virtual if isinstance(virtual, Prefix) else None

    def _normed(self, x: Tensor, batch: Batch, space: Workspace) -> Tensor:
        normed = self._projections.input(next(iter(self._into)), space, batch)
        self._ops.rms_norm(x, self._before, self._eps, normed[:, : x.shape[1]])
        return normed

    def _heads(
        self, normed: Tensor, batch: Batch, space: Workspace, saved: Workspace, xA: XA, unnormed: dict[str, Tensor]
    ) -> Heads:
        """q, k and v as heads, of a module each or of one together."""
        heads: list[Tensor] = []
        for name, sizes in self._into.items():
            rows = space.get("rows", len(normed), sum(sizes))
            self._projections.forward(name, normed, batch, space, xA, rows)
            for part in torch.split(rows, sizes, 1):
                heads.append(self._split("qkv"[len(heads)], part, batch, space, saved, unnormed))
        return Heads(*heads)

    def _split(
        self, kind: str, rows: Tensor, batch: Batch, space: Workspace, saved: Workspace, unnormed: dict[str, Tensor]
    ) -> Tensor:
        """Rows [N, heads D] as [S, heads, T, D], normed where the family does so, rotated where positions count."""
        weight = self._of_heads.get(kind)
        if weight is not None:
            before = unnormed[kind] = saved.get(f"{kind}.unnormed", *rows.shape).copy_(rows)
            rows = space.get("rows.normed", *rows.shape)
            self._ops.rms_norm(self._by_head(before), weight, self._eps, self._by_head(rows))
        (sequences, length), size = batch.shape, self._head_dim
        out = saved.get(kind, sequences, rows.shape[1] // size, length, size)
        self._ops.split_heads(rows, self._rope(kind, batch), out)
        return out

    def _merge(
        self, kind: str, heads: Tensor, unnormed: Tensor | None, batch: Batch, space: Workspace, out: Tensor
    ) -> None:
        """The gradient in the heads as that in the rows that they were made of."""
        if unnormed is None:
            self._ops.merge_heads(heads, self._rope(kind, batch), out)
            return
        rows = space.get("rows.normed", *unnormed.shape)
        self._ops.merge_heads(heads, self._rope(kind, batch), rows)
        through = space.get("rows", *unnormed.shape).zero_()
        before, dy, dx = map(self._by_head, (unnormed, rows, through))
        self._ops.rms_norm_backward(before, self._of_heads[kind], self._eps, dy, dx)
        out.copy_(through)

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.view(-1, self._head_dim)

    def _rope(self, kind: str, batch: Batch) -> Rope | None:
        return None if kind == "v" else batch.ropes[self._layer]
