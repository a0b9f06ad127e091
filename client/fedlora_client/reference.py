"""The trainer's logits for whoever checks another engine against them (entry-point group `fedlora.references`)."""

from __future__ import annotations

import numpy as np
import torch
from fedlora.adapter import Adapter
from fedlora.pack import BasePack
from numpy.typing import NDArray

from fedlora_client.decoder import Decoder
from fedlora_client.lora import LoraTensors


def logits(
    base: BasePack,
    tokens: NDArray[np.int64],  # [S, T]
    adapter: Adapter | None,
) -> NDArray[np.float32]:  # [S, T, V]
    """What torch computes on the packed base, in float32."""
    lora = None if adapter is None else LoraTensors.of(adapter)
    with torch.no_grad():
        return Decoder(base).logits(torch.from_numpy(tokens), lora).numpy()
