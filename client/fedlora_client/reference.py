"""The trainer's logits for whoever checks another engine against them (entry-point group `fedlora.references`)."""

from __future__ import annotations

import numpy as np
import torch
from fedlora.adapter import Adapter
from fedlora.pack import BasePack
from numpy.typing import NDArray

from fedlora_client.compute import choose_compute
from fedlora_client.decoder import Decoder


def logits(
    base: BasePack,
    tokens: NDArray[np.int64],  # [S, T]
    adapter: Adapter | None,
) -> NDArray[np.float32]:  # [S, T, V]
    """What torch computes on the packed base, in float32 on the CPU."""
    decoder = Decoder(base, choose_compute("float32", device="cpu"))
    return decoder.logits(torch.from_numpy(tokens), None if adapter is None else decoder.lora(adapter)).numpy()
