"""Losses and gradients by plain autograd over dense weights in float64: slow and obvious, and none of the trainer's code.

y = x W^T + gamma (m * x) A^T B^T (+ b)  for every linear module; m: what dropout leaves of its input
"""

# S sequences, T tokens of each, N = S T rows

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.lora.adapter import Adapter
from fedlora_client.data.windows import IGNORED
from fedlora_client.decoder.dense_decoder import dense_logits
from torch import Tensor

Gradients = dict[str, tuple[Tensor, Tensor]]  # {module: (in lora_A, in lora_B)}
Mask = Callable[[str, int, int], Tensor | None]  # as the trainer's `Dropout`


class Problem(NamedTuple):
    """What gradients are asked for."""

    tokens: Tensor  # int64 [S, T]
    targets: Tensor  # int64 [S, T]
    starts: Tensor  # int64 [S, T]
    row_scale: Tensor  # float32 [S, T]

    def rows(self, rows: slice) -> Problem:
        return Problem(*(part[rows] for part in self))


def random_problem(base: BasePack, sequences: int, length: int, *, seed: int = 0, ends: float = 0.2) -> Problem:
    """Several examples to a sequence, a third of the targets ignored, every loss with a weight of its own."""
    generator = np.random.default_rng([seed, sequences, length])
    shape = (sequences, length)
    tokens, targets = generator.integers(0, base.shape.vocab_size, (2, *shape))
    targets[generator.random(shape) < 1 / 3] = IGNORED
    begins = np.where(generator.random(shape) < ends, np.arange(length), 0)
    starts = np.maximum.accumulate(begins, 1)
    row_scale = generator.uniform(0.1, 1, shape).astype(np.float32)
    return Problem(*(torch.from_numpy(part) for part in (tokens, targets, starts, row_scale)))


@dataclass(frozen=True, slots=True)
class _Adapted:
    """Stands for a weight in `dense_logits`, which multiplies by its transpose."""

    weight: Tensor  # [O, I]
    lora_A: Tensor  # [R, I]
    lora_B: Tensor  # [O, R]
    scaling: float
    mask: Tensor | None  # [N, I]

    @property
    def T(self) -> _Adapted:  # noqa: N802
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        x, self = args
        seen = x if self.mask is None else x * self.mask.double().view_as(x)
        result: Tensor = x @ self.weight.T + self.scaling * (seen @ self.lora_A.T) @ self.lora_B.T
        return result


def dense_weights(base: BasePack) -> dict[str, Tensor]:
    """{module: weight} and {MODULE.bias: bias} of the base, dequantized, in float64."""
    modules = base.shape.linear_modules() | base.shape.vocabulary_modules()
    weights = {module: torch.from_numpy(dequantize(base.matrix(module)).astype(np.float64)) for module in modules}
    return weights | {
        tensor.removesuffix(".weight"): torch.from_numpy(base.floats(tensor).astype(np.float64))
        for tensor in base.shape.float_tensors()
    }


def reference_logits(
    base: BasePack, problem: Problem, adapter: Adapter | None, mask: Mask | None = None
) -> tuple[Tensor, Gradients]:
    """(logits [S, T, V], the leaves that they depend on)"""
    weights: dict[str, Any] = dense_weights(base)
    leaves: Gradients = {}
    for module, pair in adapter.pairs.items() if adapter else ():
        lora_A, lora_B = (
            torch.tensor(part.astype(np.float64), requires_grad=True) for part in (pair.lora_A, pair.lora_B)
        )
        leaves[module] = lora_A, lora_B
        dropped = mask(module, problem.tokens.numel(), pair.shape[1]) if mask else None
        scaling = adapter.config.scaling_of(module) if adapter else 0.0
        weights[module] = _Adapted(weights[module], lora_A, lora_B, scaling, dropped)
    return dense_logits(base.shape, weights, problem.tokens, problem.starts), leaves


def reference_gradients(
    base: BasePack, problem: Problem, adapter: Adapter, mask: Mask | None = None
) -> tuple[Tensor, Gradients]:
    """(losses [S, T], the gradients of sum(row_scale * losses))"""
    logits, leaves = reference_logits(base, problem, adapter, mask)
    flat = F.cross_entropy(logits.flatten(0, 1), problem.targets.flatten(), ignore_index=IGNORED, reduction="none")
    losses = flat.view(problem.targets.shape)
    (problem.row_scale.double() * losses).sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), {module: (_grad(a), _grad(b)) for module, (a, b) in leaves.items()}


def _grad(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def relative_error(got: Mapping[str, tuple[Tensor, Tensor]], expected: Gradients) -> float:
    """The mean over all tensors of ||got - expected|| / ||expected||."""
    assert got.keys() == expected.keys()
    errors = [
        float((mine.double() - theirs).norm() / theirs.norm())
        for module in expected
        for mine, theirs in zip(got[module], expected[module], strict=True)
    ]
    return sum(errors) / len(errors)
