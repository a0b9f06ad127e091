"""One block of an encoder over packed weights, for torch's autograd: each linear module is one of its functions.

h = norm(x + o(attention(q(x), k(x), v(x))))
y = norm(h + output(gelu(intermediate(h))))
"""

# S texts, T tokens of the longest, N = S T rows, H hidden size, D head size, I in features, O out features, R rank

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from fedlora.family.encoder import ROLES, EncoderShape, Role
from torch import Tensor
from torch.nn import functional as F

from fedlora_client.layers.batch import Dropout
from fedlora_client.layers.linear import Linear
from fedlora_client.layers.lora import LoraTensors, ModuleLora
from fedlora_client.layers.scale import ScaleOfModule
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.workspace import Workspace


@dataclass(frozen=True, slots=True)
class TextBatch:
    """What every block needs to know of a batch."""

    is_text: Tensor  # bool [S, T], False where a text is padded
    lora: LoraTensors | None
    dropout: Dropout
    space: Workspace


class LayerNorm:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, computed in float32."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self._weight, self._bias, self._eps = weight, bias, eps

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, H] -> [N, H]"""
        return F.layer_norm(x.float(), self._weight.shape, self._weight, self._bias, self._eps).to(x.dtype)


class EncoderBlock:
    """Frozen: any number of threads may share one, each with a workspace of its own."""

    def __init__(
        self,
        layer: int,
        shape: EncoderShape,
        matrices: Mapping[str, PackedMatrix],
        floats: Mapping[str, Tensor],  # float32, by their names in the pack
        ops: Ops,
        dtype: torch.dtype,
    ) -> None:
        self._heads, self._head_size = shape.num_heads, shape.hidden_size // shape.num_heads
        modules = {role: shape.module(layer, role) for role in ROLES}
        self._linear = {
            role: Linear(module, matrices[module], ops, floats[f"{module}.bias"].to(dtype))
            for role, module in modules.items()
        }
        self._attention_norm, self._output_norm = (
            LayerNorm(floats[f"{norm}.weight"], floats[f"{norm}.bias"], shape.layer_norm_eps)
            for norm in shape.block_norms(layer)
        )

    def forward(self, x: Tensor, batch: TextBatch, *, first_only: bool = False) -> Tensor:
        """x [N, H] -> y [N, H]; with `first_only` the rows of the texts' first tokens, [S, H]"""
        asking = x.view(*batch.is_text.shape, -1)[:, 0].contiguous() if first_only else x
        return self.attending(asking, *self.keys_and_values(x, batch), batch)

    def keys_and_values(self, x: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """x [N, H] -> k and v, [S, heads, T, D] each"""
        k, v = (self._by_head(self._apply(role, x, batch), batch) for role in ROLES[1:3])
        return k, v

    def attending(self, x: Tensor, k: Tensor, v: Tensor, batch: TextBatch) -> Tensor:
        """The block's output at those tokens, as many of each text, whose rows are x."""
        q = self._by_head(self._apply("query", x, batch), batch)
        # Whole batches without padding need no mask, which is the faster way.
        mask = None if bool(batch.is_text.all()) else batch.is_text[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(x.shape)
        h = self._attention_norm(x + self._apply("attention_output", mixed, batch))
        active = F.gelu(self._apply("intermediate", h, batch))
        return self._output_norm(h + self._apply("output", active, batch))

    def _by_head(self, rows: Tensor, batch: TextBatch) -> Tensor:
        """[S tokens of each text, H] -> [S, heads, tokens, D]"""
        return rows.view(len(batch.is_text), -1, self._heads, self._head_size).transpose(1, 2)

    def _apply(self, role: Role, x: Tensor, batch: TextBatch) -> Tensor:
        linear = self._linear[role]
        factors = batch.lora.modules.get(linear.module) if batch.lora else None
        scale = batch.lora.scales.get(linear.module) if batch.lora else None
        call = _Call(linear, factors, scale, batch.dropout, batch.space)
        return cast(Tensor, _Packed.apply(x, call))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Call:
    """One use of a linear module."""

    linear: Linear
    factors: ModuleLora | None
    scale: ScaleOfModule | None
    dropout: Dropout
    space: Workspace

    def mask(self, rows: int) -> Tensor | None:
        """[N, I], times which the adapter sees its input."""
        return self.dropout(self.linear.module, rows, self.linear.in_features) if self.factors else None

    def wide(self, x: Tensor, name: str) -> Tensor:
        """x [N, I] with R more columns, where `Linear` wants them; the copy holds until the name's next use."""
        scaled = self.scale is not None and name == "gradient"  # which the backward multiplies in place
        if (self.factors is None or self.factors.count > 1) and not scaled:
            return x.contiguous()
        copy = self.space.get(f"encoder {name}", len(x), x.shape[1] + (self.factors.rank if self.factors else 0))
        copy[:, : x.shape[1]] = x
        return copy


class _Packed(torch.autograd.Function):
    """y = x W^T + bias + gamma x A^T B^T. Its backward adds the gradients of A and B to where `ModuleLora` has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call) -> Tensor:
        wide_x, xA = call.wide(x, "input"), None
        if call.factors is not None:
            xA = call.linear.lora_down(wide_x, call.factors, call.space, call.mask(len(x)))
        out = x.new_empty(len(x), call.linear.out_features)
        call.linear.forward(wide_x, xA, call.factors, call.space, out, scale=call.scale)
        ctx.call, ctx.xA = call, xA
        kept = (x, out) if call.scale is not None and call.scale.side == "output" else (x,)
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x, *outs), (gradient,), call = ctx.saved_tensors, gradients, ctx.call
        wide_x, d_out, dx = call.wide(x, "input"), call.wide(gradient, "gradient"), torch.empty_like(x)
        call.linear.backward(
            wide_x, ctx.xA, d_out, call.factors, call.space, dx, mask=call.mask(len(x)), scale=call.scale,
            y=outs[0] if outs else None,
        )  # fmt: skip
        return dx, None
