"""The classification head of an encoder: scores of a text, from the output at its first token.

scores = out(f(dense(y[0])))        f = tanh or relu

The tensors that an adapter has of it (its extra tensors) stand in place of the base's.
"""

# C adapters, S texts, of which each adapter has S / C consecutive ones, H hidden size, L labels

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from fedlora.family.encoder import EncoderShape
from torch import Tensor
from torch.nn import functional as F

from fedlora_client.data.encoding import IGNORED
from fedlora_client.layers.lora import LoraTensors


class EncoderHead:
    """Computed in float32: it is small."""

    def __init__(self, shape: EncoderShape, floats: Mapping[str, Tensor]) -> None:
        self._dense, self._out = shape.names.head_dense, shape.names.head_out
        self._floats = {name: floats[name] for m in (self._dense, self._out) for name in (f"{m}.weight", f"{m}.bias")}
        self._activation: Callable[[Tensor], Tensor] = torch.tanh if shape.head_activation == "tanh" else torch.relu

    def scores(self, first: Tensor, lora: LoraTensors | None = None) -> Tensor:
        """first [S, H], of the texts' first tokens -> float32 [S, L]"""
        return self._scores_with(_values(lora), first)

    def losses(self, first: Tensor, labels: Tensor, lora: LoraTensors | None = None) -> Tensor:
        """-log softmax(scores)[label] of each text in nats, float32 [S], 0 where it is IGNORED; labels int64 [S]"""
        return self.losses_with(_values(lora), first, labels)

    def losses_with(
        self,
        own: Mapping[str, Tensor],  # {tensor name: [C, ...]} in place of the base's
        first: Tensor,  # [S, H]
        labels: Tensor,  # int64 [S]
        shift: Tensor | None = None,  # float32 [S, L], added to the scores
    ) -> Tensor:
        """`losses` with tensors that may want gradients."""
        scores = self._scores_with(own, first)
        scores = scores if shift is None else scores + shift.to(scores.device)
        return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none")

    def _scores_with(self, own: Mapping[str, Tensor], first: Tensor) -> Tensor:
        return self._linear(self._out, self._activation(self._linear(self._dense, first.float(), own)), own)

    def _linear(self, module: str, x: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """x [S, I] -> [S, O], by the base's module or by that of each adapter"""
        names = (f"{module}.weight", f"{module}.bias")
        if not any(name in own for name in names):
            return F.linear(x, *(self._floats[name] for name in names))
        weight, bias = (own.get(name, self._floats[name][None]) for name in names)  # [C or 1, O, I], [C or 1, O]
        parts = x.view(max(len(weight), len(bias)), -1, x.shape[1])
        return (parts @ weight.transpose(1, 2) + bias[:, None]).flatten(0, 1)


def _values(lora: LoraTensors | None) -> dict[str, Tensor]:
    return {name: extra.values for name, extra in lora.extras.items()} if lora else {}
