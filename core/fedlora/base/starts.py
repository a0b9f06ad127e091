"""Where the factors of a new adapter begin, taken from the base's own weights W [O, I].

pissa    W = U S V^T:  B0 = U_R sqrt(S_R / gamma), A0 = sqrt(S_R / gamma) V_R^T     Meng et al., 2024 (arXiv:2404.02948)
olora    W = Q T, T upper triangular:  B0 = Q_R, A0 = T_R                           Buyukakyuz, 2024 (arXiv:2406.01775)

The papers train on W - gamma B0 A0. Here W is frozen and quantized, and shared by all adapters: the start is taken back by
a frozen adapter beside the trained one, W + gamma (B A - B0 A0), which changes nothing before the first step. Names and
numbers are those of PEFT's `init_lora_weights` (peft 0.21); singular vectors come from `low_rank`, which says how close
they are. Memory: one W in float32 and what its decomposition takes.
"""

# O out features, I in features, R rank, gamma the adapter's scaling

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.low_rank import leading_of_matrix

Init = Literal["default", "pissa", "olora"]
INITS: tuple[Init, ...] = get_args(Init)


def started(adapter: Adapter, base: BasePack, init: Init) -> Adapter:
    """`adapter` with the factors that `init` begins with. Raises ConfigError where a weight has no such rank."""
    if init == "default":
        return adapter
    pairs = {}
    for module, pair in adapter.pairs.items():
        if pair.rank > min(pair.shape):
            raise ConfigError(
                f"lora.init = {init}: {module} has {min(pair.shape)} directions, lora.rank is {pair.rank}; lower it, or "
                "take lora.init = default"
            )
        pairs[module] = _start(base, module, pair.rank, adapter.config.scaling_of(module), init)
    return Adapter(adapter.config, pairs, extras=adapter.extras)


def taken_back(start: Adapter) -> Adapter:
    """The frozen adapter that undoes a start: gamma times -B0 A0."""
    return Adapter(start.config, {module: LoraPair(pair.lora_A, -pair.lora_B) for module, pair in start.pairs.items()})


def _start(base: BasePack, module: str, rank: int, scaling: float, init: Init) -> LoraPair:
    weight = dequantize(base.matrix(module))
    if init == "olora":
        q, _ = np.linalg.qr(weight[:, :rank])  # the first columns of Q depend on the first columns of W alone
        return LoraPair(q.T @ weight, q)
    u, s, vt = leading_of_matrix(weight, rank)
    roots = np.sqrt(s / scaling)
    lora_A, lora_B = np.zeros((rank, weight.shape[1]), np.float32), np.zeros((weight.shape[0], rank), np.float32)
    lora_A[: len(s)], lora_B[:, : len(s)] = roots[:, None] * vt, u * roots
    return LoraPair(lora_A, lora_B)
