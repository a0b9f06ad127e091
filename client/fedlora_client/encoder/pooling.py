"""The vector of a text, from the last states of its tokens, as `fedlora.family.text_embedding` says."""

# S texts, T tokens of the longest, H hidden size, E numbers of a vector

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from fedlora.family.text_embedding import Activation, TextEmbedding
from torch import Tensor
from torch.nn import functional as F

_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda v: v, "tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu,
}  # fmt: skip


def pooled(
    steps: TextEmbedding,
    states: Tensor,  # float32 [S, T, H]
    is_text: Tensor,  # bool [S, T]: True, and False where a text is padded at its end
    floats: Mapping[str, Tensor],  # of the dense layers
) -> Tensor:  # [S, E]
    """The vectors, not scaled to length 1."""
    lengths = is_text.sum(1)
    match steps.pooling:
        case "cls":
            vectors = states[:, 0]
        case "last_token":
            vectors = states[torch.arange(len(states), device=states.device), lengths - 1]
        case "max":
            vectors = states.masked_fill(~is_text[:, :, None], -torch.inf).amax(1)
        case _:
            weights = is_text.float()
            if steps.pooling == "weighted_mean":
                weights = weights * torch.arange(1, is_text.shape[1] + 1, device=states.device)
            total = weights.sum(1, keepdim=True)
            divisor = total.sqrt() if steps.pooling == "mean_sqrt_len" else total
            vectors = (states * weights[:, :, None]).sum(1) / divisor
    for number, layer in enumerate(steps.dense):
        linear = F.linear(vectors, floats[f"dense.{number}.weight"], floats.get(f"dense.{number}.bias"))
        vectors = _ACTIVATIONS[layer.activation](linear)
    return vectors
