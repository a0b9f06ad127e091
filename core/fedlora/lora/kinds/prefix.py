"""prefix: keys and values of P virtual tokens in each layer: k = [K_1 ... K_P, k(x)], v = [V_1 ... V_P, v(x)].

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021 (arXiv:2101.00190), without the network
that makes them in training (`prefix_projection = false`; what PEFT saves of one with it is the same tensor, and is read).
They are what PEFT puts into the cache: after the norm of keys and after the rotation, so no key of a virtual token is
rotated, in any family. Out of a layer's window they pass as tokens do.

Own tensor: prompt_embeddings [P, 2 L K D], of each layer the keys of all heads, then the values. PEFT draws them from a
normal distribution of deviation 1; here it is 0.02, as weights begin. Zero would keep all P alike for ever: each would have
the gradient of the others. So a new adapter does change what the base says, a little.

Its weighted mean is that of the keys and of the values, position by position: the numbers are averaged exactly. Attention
is not linear in the keys, so the mean of what devices' prefixes do is near, and not this, as of prompts (`prompt.py`).
"""

# P virtual tokens, L layers, K key/value heads, D head size

from __future__ import annotations

import numpy as np

from fedlora.family import DecoderShape, ModelShape
from fedlora.lora.adapter import Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import Weight
from fedlora.lora.kinds.virtual import WORD, VirtualTokens

_DEVIATION = np.float32(0.02)


class Prefix(VirtualTokens):
    name, title = "prefix", "prefix tuning"
    rate = 20.0
    keys = frozenset({"num_virtual_tokens"})
    mean = "of keys and of values by position: the numbers exactly, near the mean of what they do, not equal"
    peft_type, peft_mark = "PREFIX_TUNING", "peft_type is 'PREFIX_TUNING'"
    size = "the virtual tokens and 2 x layers x heads for keys and values x their size"

    def width(self, model: DecoderShape) -> int:
        return 2 * model.num_layers * model.num_kv_heads * model.head_dim

    def peft_sizes(self, model: DecoderShape) -> dict[str, int]:
        heads = {"num_attention_heads": model.num_kv_heads, "token_dim": model.num_kv_heads * model.head_dim}
        return {**super().peft_sizes(model), **heads}

    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        shape = self.shapes(config, model)[WORD]
        return {WORD: generator.standard_normal(shape, np.float32) * _DEVIATION}
