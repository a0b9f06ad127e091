"""A linear module over its packed weight: dequantized for one product, with LoRA almost free beside it.

    y = [x | x A^T] [W | gamma B]^T + b        dx = [dy | u] [W ; A]        u = gamma dy B
    dA = u^T x                                 dB = gamma dy^T (x A^T)

W [O, I] is dequantized into a scratch whose rows are longer by the rank. gamma B goes beside it and x A^T beside x, so that
one product gives both; the backward does the same with more rows instead of longer ones. An adapter that stands frozen
beside the one that trains is so many more components of it, which get no gradient. Where C > 1 adapters share a batch, each
has N / C consecutive rows, and their products are batched, apart from the frozen one. `scale.py` says what a vector of the
adapter does to a module.
"""

# N rows, I in features, O out features, R rank (that of a frozen one included), C adapters
# E extra columns: the largest rank (C > 1: 0)

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_client.layers.lora import ModuleLora
from fedlora_client.layers.scale import ScaleOfModule
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.workspace import Workspace


class Linear:
    """y = x W^T + gamma x A^T B^T + b, with W and b frozen."""

    def __init__(self, module: str, matrix: PackedMatrix, ops: Ops, bias: Tensor | None = None) -> None:
        """`bias` [O] is of the compute dtype; most modules have none."""
        self.module = module
        self.in_features, self.out_features = matrix.in_features, matrix.out_features
        self._matrix, self._ops, self._bias = matrix, ops, bias

    def lora_down(
        self,
        x: Tensor,  # [N, I + E]
        factors: ModuleLora,
        space: Workspace,
        mask: Tensor | None = None,  # [N, I], times which the adapter sees x
    ) -> Tensor:  # [C, N / C, R]
        """x A^T, which the forward and the backward need."""
        width, extra = self.in_features, x.shape[1] - self.in_features
        x_dropped = x if mask is None else _masked(x, mask, space)
        if factors.count > 1:
            return x_dropped.view(factors.count, -1, width) @ factors.lora_A.to(x.dtype).transpose(1, 2)
        # A product wants whole rows of x: its extra columns, left from another module, meet zeros.
        lora_A = space.get("lora_A", factors.rank, width + extra)
        factors.put_rows(lora_A[:, :width])
        lora_A[:, width:] = 0
        return (x_dropped @ lora_A.T)[None]

    def forward(
        self,
        x: Tensor,  # [N, I + E]; the extra columns are overwritten
        xA: Tensor | None,  # from `lora_down`; None without an adapter
        factors: ModuleLora | None,
        space: Workspace,
        out: Tensor,  # [N, O]
        residual: Tensor | None = None,  # [N, O]
        scale: ScaleOfModule | None = None,
    ) -> None:
        """out = y, or y + residual"""
        width, extra = self.in_features, x.shape[1] - self.in_features
        weight = space.get("weight", self.out_features, width + extra)
        self._ops.dequantize(self._matrix, 0, self.out_features, weight[:, :width])
        if extra:
            beside = weight[:, width:]
            beside.zero_()
            if factors is not None and xA is not None:
                factors.put_columns(beside[:, : factors.rank])
                x[:, width : width + factors.rank] = xA[0]
        bias = self._bias
        if scale is not None:
            scale.prepare(weight[:, :width], factors)
            bias = self._scale(weight, scale)
        added = bias if residual is None else residual
        if added is None:
            torch.mm(x, weight.T, out=out)
        else:
            torch.addmm(added, x, weight.T, out=out)
        if bias is not None and residual is not None:
            out += bias
        if factors is not None and xA is not None and factors.count > 1:
            lora_B = (factors.lora_B * factors.scaling).to(x.dtype)
            out += (xA @ lora_B.transpose(1, 2)).view_as(out)

    def backward(
        self,
        x: Tensor,  # [N, I + E]
        xA: Tensor | None,
        dy: Tensor,  # [N, O + E]: the gradient in y, its extra columns are overwritten
        factors: ModuleLora | None,
        space: Workspace,
        dx: Tensor | None,  # [N, I]; None where nothing below trains
        *,
        add: bool = False,  # to dx, instead of overwriting it
        mask: Tensor | None = None,
        scale: ScaleOfModule | None = None,
        y: Tensor | None = None,  # [N, O], of the forward: without it a scaled module computes it again
    ) -> None:
        """Add the gradients of A and B to `factors`, where they train, and of s to `scale`, and give that in x.

        An output's `scale` multiplies dy in place.
        """
        if scale is not None and scale.side == "input":
            self._backward_scaled_input(x, dy, scale, space, dx, add=add)
            return
        if scale is not None:
            self._scaled_gradient(x, xA, dy, factors, space, scale, y)
        u = None
        if factors is not None and xA is not None:
            u = self._adapter_gradients(x, xA, dy, factors, space, mask)
        if dx is None:
            return
        width, extra = self.out_features, dy.shape[1] - self.out_features
        weight = space.get("weight", width + extra, self.in_features)
        self._ops.dequantize(self._matrix, 0, width, weight[:width])
        apart = u is not None and (mask is not None or not extra)
        if extra:
            weight[width:] = 0
            if factors is not None and u is not None and not apart:
                factors.put_rows(weight[width : width + factors.rank])
                dy[:, width : width + factors.rank] = u[0]
        if add:
            torch.addmm(dx, dy, weight, out=dx)
        else:
            torch.mm(dy, weight, out=dx)
        if factors is not None and u is not None and apart:
            through = (u @ factors.all_rows().to(u.dtype)).view_as(dx)
            dx += through if mask is None else through.mul_(mask)

    def _scale(self, weight: Tensor, scale: ScaleOfModule) -> Tensor | None:
        """Scale the rows of [W | gamma B] [O, I + E], or the columns of W, in place; return what the bias becomes."""
        if scale.side == "input":
            weight[:, : self.in_features].mul_(scale.values)
            return self._bias
        weight.mul_(scale.values[:, None])
        if self._bias is None or not scale.scales_bias:
            return self._bias
        return (self._bias * scale.values).to(self._bias.dtype)

    def _scaled_gradient(
        self, x: Tensor, xA: Tensor | None, dy: Tensor, factors: ModuleLora | None, space: Workspace, scale: ScaleOfModule,
        y: Tensor | None,
    ) -> None:  # fmt: skip
        """Add the gradient of an output's s, and turn dy into the gradient in what s multiplies."""
        d_out = dy[:, : self.out_features]
        unscaled = space.get("unscaled", len(x), self.out_features)  # [N, O], y without s, times s where y is there
        known = y is not None and bool((scale.values != 0).all())
        if y is not None and known:
            unscaled.copy_(y)
            if self._bias is not None and not scale.scales_bias:
                unscaled -= self._bias
        else:
            self._unscaled(x, xA, factors, space, unscaled)
            if self._bias is not None and scale.scales_bias:
                unscaled += self._bias
        gradient = unscaled.mul_(d_out).sum(0, dtype=torch.float32)
        scale.add(gradient / scale.values if known else gradient)
        d_out.mul_(scale.values)

    def _unscaled(
        self, x: Tensor, xA: Tensor | None, factors: ModuleLora | None, space: Workspace, out: Tensor
    ) -> None:
        """out [N, O] = W x + gamma B A x"""
        weight = space.get("weight", self.out_features, self.in_features)
        self._ops.dequantize(self._matrix, 0, self.out_features, weight)
        torch.mm(x[:, : self.in_features], weight.T, out=out)
        if factors is not None and xA is not None:
            lora_B = space.get("lora_B", self.out_features, factors.rank)
            factors.put_columns(lora_B)
            out.addmm_(xA[0], lora_B.T)

    def _backward_scaled_input(
        self, x: Tensor, dy: Tensor, scale: ScaleOfModule, space: Workspace, dx: Tensor | None, *, add: bool
    ) -> None:
        """Add the gradient of an input's s, and give that in x; the kinds that have one have no factors there."""
        weight = space.get("weight", self.out_features, self.in_features)
        self._ops.dequantize(self._matrix, 0, self.out_features, weight)
        through = space.get("unscaled", len(x), self.in_features)  # [N, I], the gradient in s * x
        torch.mm(dy[:, : self.out_features], weight, out=through)
        scale.add((through * x[:, : self.in_features]).sum(0, dtype=torch.float32))
        if dx is None:
            return
        through.mul_(scale.values)
        if add:
            dx.add_(through)
        else:
            dx.copy_(through)

    def _adapter_gradients(
        self, x: Tensor, xA: Tensor, dy: Tensor, factors: ModuleLora, space: Workspace, mask: Tensor | None
    ) -> Tensor:
        """Add to the gradients of A and B, where they train; return u [C, N / C, R]."""
        x_dropped = x if mask is None else _masked(x, mask, space)
        if factors.count > 1:
            dy = dy.view(factors.count, -1, self.out_features)
            x_dropped = x_dropped.view(factors.count, -1, self.in_features)
            u = dy @ (factors.lora_B * factors.scaling).to(dy.dtype)
            if factors.grad_A is not None:
                factors.grad_A.add_(u.transpose(1, 2) @ x_dropped)
            if factors.grad_B is not None:
                factors.grad_B.add_((dy.transpose(1, 2) @ xA) * factors.scaling)
            return u
        lora_B = space.get("lora_B", dy.shape[1], factors.rank)
        factors.put_columns(lora_B[: self.out_features])
        lora_B[self.out_features :] = 0
        u = dy @ lora_B
        rank = factors.trained_rank
        if factors.trains_A:
            factors.add_A((u[:, :rank].T @ x_dropped)[:, : self.in_features])
        if factors.trains_B:
            factors.add_B((dy.T @ xA[0][:, :rank])[: self.out_features] * factors.scaling[0])
        return u[None]


def _masked(x: Tensor, mask: Tensor, space: Workspace) -> Tensor:
    """x [N, I + E] with its I columns masked; the others meet zeros, or are not used."""
    masked = space.get("masked", *x.shape)
    torch.mul(x[:, : mask.shape[1]], mask, out=masked[:, : mask.shape[1]])
    return masked
