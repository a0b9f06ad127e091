"""The trainer's logits for whoever checks another engine against them (entry-point group `fedlora.references`)."""

from __future__ import annotations

import numpy as np
import torch
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_client.encoder.padding import check_padding
from fedlora_client.model import open_model
from fedlora_client.ops.compute import choose_compute


def logits(
    base: BasePack,
    tokens: NDArray[np.int64],  # [S, T]
    adapter: Adapter | None,
    mask: NDArray[np.int64] | None = None,  # [S, T], of an encoder: 1, then 0 where a text is padded; None: all 1
) -> NDArray[np.float32]:  # [S, T, V]; of an encoder the scores [S, L], or without a head the embeddings [S, H]
    """What torch computes on the packed base, in float32 on the CPU. Raises DataError where padding is not at the end."""
    model = open_model(base, choose_compute("float32", device="cpu"))
    starts = None
    if mask is not None:
        check_padding(torch.from_numpy(mask))
        starts = torch.from_numpy(np.where(mask == 1, 0, np.arange(tokens.shape[1])))
    lora = None if adapter is None else model.lora(adapter)
    return model.logits(torch.from_numpy(tokens), lora, starts).numpy()
