"""The linear modules of one layer in a batch: each with its adapter, its dropout and the buffers of its products.

Modules that read the same input share one buffer for it, as wide as the largest of their ranks asks.
"""

# N rows, I in features, O out features, R rank, C adapters
# E extra columns of a linear module's input and of the gradient in its output: see `linear`

from __future__ import annotations

from collections.abc import Mapping

from fedlora.family import DecoderShape, layer_name
from torch import Tensor

from fedlora_client.layers.batch import Batch
from fedlora_client.layers.linear import Linear
from fedlora_client.layers.lora import ModuleLora
from fedlora_client.layers.scale import ScaleOfModule
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.workspace import Workspace

# What the forward gives and the backward needs: {module: x A^T [C, N / C, R]}, {MODULE.out: y [N, O]} where y is scaled
XA = dict[str, Tensor]
# The gradient in gate takes the place of down's input, whose last reader was the backward of down.
_PLACE = {"gate_proj": "down_proj.input", "gate_up_proj": "down_proj.input"}


class Projections:
    """Modules go by their last name, such as q_proj; inputs by that of their first reader."""

    def __init__(
        self,
        layer: int,
        shape: DecoderShape,
        matrices: Mapping[str, PackedMatrix],
        biases: Mapping[str, Tensor],  # {module: [O]}, of the compute dtype
        ops: Ops,
    ) -> None:
        prefix = f"{layer_name(layer)}."
        self._linear, self._readers = dict[str, Linear](), dict[str, tuple[str, ...]]()
        for group in shape.linear_groups():
            if not group[0].startswith(prefix):
                continue
            names = tuple(module.rsplit(".", 1)[-1] for module in group)
            for name, module in zip(names, group, strict=True):
                self._linear[name] = Linear(module, matrices[module], ops, biases.get(module))
                self._readers[name] = names

    def readers(self, name: str) -> tuple[str, ...]:
        """The modules that read the same input, `name` among them."""
        return self._readers[name]

    def in_features(self, name: str) -> int:
        return self._linear[name].in_features

    def out_features(self, name: str) -> int:
        return self._linear[name].out_features

    def input(self, name: str, space: Workspace, batch: Batch) -> Tensor:
        """A buffer [N, I + E] for what a module, and all that read the same, reads."""
        return space.get(
            f"{self._readers[name][0]}.input", batch.rows, self.in_features(name) + self._extra(name, batch)
        )

    def gradient_of(self, name: str, space: Workspace, batch: Batch) -> Tensor:
        """A buffer [N, O + E] for the gradient in a module's output."""
        place = _PLACE.get(name, f"{name}.gradient")
        return space.get(place, batch.rows, self.out_features(name) + self._extra(name, batch))

    def forward(
        self, name: str, x: Tensor, batch: Batch, space: Workspace, xA: XA, out: Tensor | None,
        residual: Tensor | None = None, *, stays: bool = False,
    ) -> None:  # fmt: skip
        """out = y, or y + residual, of the input x; with None only what the backward needs, put into `xA`.

        `stays`: nobody changes out before the backward.
        """
        linear, factors = self._linear[name], self._factors(name, batch)
        if factors is not None:
            xA[name] = linear.lora_down(x, factors, space, self._mask(name, batch))
        if out is not None:
            scale = self._scale(name, batch)
            linear.forward(x, xA.get(name), factors, space, out, residual, scale)
            if scale is not None and residual is None:
                xA[f"{name}.out"] = out if stays else out.clone()

    def backward(
        self, name: str, x: Tensor, xA: XA, dy: Tensor, batch: Batch, space: Workspace, dx: Tensor | None,
        *, add: bool = False,
    ) -> None:  # fmt: skip
        """Add the gradients of the module's adapters; dx = (or +=) that in its input."""
        factors, mask = self._factors(name, batch), self._mask(name, batch)
        scale = self._scale(name, batch)
        y = xA.get(f"{name}.out")
        self._linear[name].backward(x, xA.get(name), dy, factors, space, dx, add=add, mask=mask, scale=scale, y=y)

    def _extra(self, name: str, batch: Batch) -> int:
        ranks = [f.rank for f in (self._factors(other, batch) for other in self._readers[name]) if f and f.count == 1]
        return max(ranks, default=0)

    def _factors(self, name: str, batch: Batch) -> ModuleLora | None:
        return batch.lora.modules.get(self._linear[name].module) if batch.lora else None

    def _scale(self, name: str, batch: Batch) -> ScaleOfModule | None:
        return batch.lora.scales.get(self._linear[name].module) if batch.lora else None

    def _mask(self, name: str, batch: Batch) -> Tensor | None:
        linear = self._linear[name]
        return batch.dropout(linear.module, batch.rows, linear.in_features)
