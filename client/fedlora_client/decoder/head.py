"""The last norm and the head: logits, and the cross entropy with its gradient in bounded memory.

The loss is computed for a chunk of the rows that have a target, and a part of the vocabulary at a time. The logits of a
chunk are kept until its softmax is known; its gradient overwrites them.
"""

# N rows, H hidden size, V vocabulary, n rows of a chunk

from __future__ import annotations

import math

import torch
from fedlora.family import HEAD
from torch import Tensor

from fedlora_client.data.windows import IGNORED
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.workspace import Workspace

_WEIGHT = f"{HEAD}.weight"  # the extra tensor that takes the place of the base's head
VOCABULARY_PART = 4096  # tokens whose weights are dequantized at a time


class Head:
    """logits = cap(norm(x) W^T), with W frozen and packed; cap(z) = c tanh(z / c), or z."""

    def __init__(self, matrix: PackedMatrix, norm: Tensor, eps: float, compute: Compute, cap: float = 0.0) -> None:
        """cap 0: none"""
        self._matrix, self._norm, self._eps, self._ops, self._cap = matrix, norm, eps, compute.ops, cap
        self.vocabulary = matrix.out_features

    def logits(self, x: Tensor, space: Workspace, lora: LoraTensors | None = None) -> Tensor:
        """x [N, H] -> [N, V]"""
        normed = torch.empty_like(x)
        self._ops.rms_norm(x, self._norm, self._eps, normed)
        parts = [normed @ self._weight(first, space, lora).T for first in range(0, self.vocabulary, VOCABULARY_PART)]
        logits = torch.cat(parts, 1)
        self._limit(logits)
        return logits

    def losses(
        self,
        x: Tensor,  # [N, H]
        targets: Tensor,  # int64 [N]; IGNORED: no loss there
        space: Workspace,
        chunk_rows: int,
        lora: LoraTensors | None,
        gradient: Tensor | None = None,  # [N, H]: overwritten with that of sum(row_scale * loss) in x
        row_scale: Tensor | None = None,  # float32 [N]
    ) -> Tensor:  # float32 [N]
        """-log softmax(logits)[target] of each row in nats, 0 where there is no target."""
        result = torch.zeros(len(x), device=x.device)
        if gradient is not None:
            gradient.zero_()
        labelled = (targets != IGNORED).nonzero().flatten()
        for rows in torch.split(labelled, chunk_rows):
            chunk, wanted = x[rows], targets[rows]
            normed = torch.empty_like(chunk)
            self._ops.rms_norm(chunk, self._norm, self._eps, normed)
            log_total, at_target, parts = self._logsumexp(normed, wanted, space, lora)
            result[rows] = log_total - at_target
            if gradient is not None and row_scale is not None:
                upstream = self._backward(normed, parts, wanted, log_total, row_scale[rows], space, lora)
                through = torch.zeros_like(chunk)
                self._ops.rms_norm_backward(chunk, self._norm, self._eps, upstream, through)
                gradient[rows] = through
        return result

    def _logsumexp(
        self, normed: Tensor, targets: Tensor, space: Workspace, lora: LoraTensors | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(log sum exp, the target's logit, the logits of each part of the vocabulary)"""
        count, device = len(normed), normed.device
        held = space.get("logits", count * self.vocabulary)
        largest, total = torch.full((count,), -math.inf, device=device), torch.zeros(count, device=device)
        at_target, parts = torch.zeros(count, device=device), []
        for first in range(0, self.vocabulary, VOCABULARY_PART):
            weight = self._weight(first, space, lora)
            logits = held[count * first : count * (first + len(weight))].view(count, len(weight))
            torch.mm(normed, weight.T, out=logits)
            self._limit(logits)
            self._ops.online_logsumexp(logits, first, targets, largest, total, at_target)
            parts.append(logits)
        return largest + total.log(), at_target, parts

    def _backward(
        self,
        normed: Tensor,
        parts: list[Tensor],
        targets: Tensor,
        log_total: Tensor,
        row_scale: Tensor,
        space: Workspace,
        lora: LoraTensors | None,
    ) -> Tensor:
        """The gradient in the norm's output [n, H]; the logits become their gradient."""
        total = torch.zeros(len(targets), self._matrix.in_features, device=targets.device)
        for part, logits in enumerate(parts):
            first = part * VOCABULARY_PART
            slope = None
            if self._cap:
                slope = space.get("logits.slope", *logits.shape).copy_(logits)
                slope.div_(self._cap).square_().neg_().add_(1)
            self._ops.cross_entropy_backward(logits, first, targets, log_total, row_scale)
            if slope is not None:
                logits.mul_(slope)
            total += logits @ self._weight(first, space, lora)
            if lora is not None and (own := lora.extras.get(_WEIGHT)):
                own.gradients[0, first : first + logits.shape[1]] += logits.T @ normed
        return total.to(parts[0].dtype)

    def _limit(self, logits: Tensor) -> None:
        """In place: cap(logits)"""
        if self._cap:
            logits.div_(self._cap).tanh_().mul_(self._cap)

    def _weight(self, first: int, space: Workspace, lora: LoraTensors | None) -> Tensor:
        """W [V', H] of the tokens from `first`: the base's, or the one that trains."""
        last = min(first + VOCABULARY_PART, self.vocabulary)
        weight = space.get("weight", last - first, self._matrix.in_features)
        if lora is not None and (own := lora.extras.get(_WEIGHT)):
            weight.copy_(own.values[0, first:last])
        else:
            self._ops.dequantize(self._matrix, first, last, weight)
        return weight
