"""The keys and values of an adapter's virtual tokens on its base (entry-point group `fedlora.prefixes`)."""

# L layers, K key/value heads, P virtual tokens, D head size

from __future__ import annotations

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import choose_compute


def heads(base: BasePack, adapter: Adapter) -> NDArray[np.float32]:  # [2 L, K, P, D]
    """Of each layer the keys, as attention reads them, then the values, in float32 on the CPU.

    Raises ConfigError where the virtual tokens, and one token of a text, exceed the context.
    """
    decoder = Decoder(base, choose_compute("float32", device="cpu"))
    return decoder.virtual_heads(decoder.lora(adapter)).numpy()
