"""The frozen classification head of an encoder: scores of a text, from the output at its first token.

scores = out(f(dense(y[0])))        f = tanh or relu
"""

# S texts, H hidden size, L labels

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from fedlora.family.encoder import EncoderShape
from torch import Tensor
from torch.nn import functional as F

from fedlora_client.data.encoding import IGNORED


class EncoderHead:
    """Computed in float32: it is small."""

    def __init__(self, shape: EncoderShape, floats: Mapping[str, Tensor]) -> None:
        self._dense, self._out = (
            (floats[f"{module}.weight"], floats[f"{module}.bias"])
            for module in (shape.names.head_dense, shape.names.head_out)
        )
        self._activation: Callable[[Tensor], Tensor] = torch.tanh if shape.head_activation == "tanh" else torch.relu

    def scores(self, first: Tensor) -> Tensor:
        """first [S, H], of the texts' first tokens -> float32 [S, L]"""
        return F.linear(self._activation(F.linear(first.float(), *self._dense)), *self._out)

    def losses(self, first: Tensor, labels: Tensor, shift: Tensor | None = None) -> Tensor:
        """-log softmax(scores + shift)[label] of each text in nats, float32 [S], 0 where it is IGNORED; labels int64 [S]"""
        scores = self.scores(first)
        scores = scores if shift is None else scores + shift.to(scores.device)
        return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none")
