"""Aggregation methods: one file each. To add one, write its file and name it here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from fedlora.errors import ConfigError

from fedlora_server.methods.fedavg import FedAvg
from fedlora_server.methods.fedex import FedEx
from fedlora_server.methods.fedrot import FedRot
from fedlora_server.methods.fedsa import FedSa
from fedlora_server.methods.fedsvd import FedSvd
from fedlora_server.methods.ffa import Ffa
from fedlora_server.methods.hetlora import HetLora
from fedlora_server.methods.lorafair import LoraFair
from fedlora_server.methods.method import Method
from fedlora_server.methods.raflora import RaFlora
from fedlora_server.methods.rolora import RoLora
from fedlora_server.methods.stack import Stack
from fedlora_server.methods.svd import Svd

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        "fedavg": FedAvg, "ffa": Ffa, "rolora": RoLora, "fedsvd": FedSvd, "svd": Svd, "stack": Stack, "fedex": FedEx,
        "hetlora": HetLora, "raflora": RaFlora, "fedsa": FedSa, "fedrot": FedRot, "lorafair": LoraFair,
    }
)  # fmt: skip


def find_method(name: str) -> type[Method]:
    """Raises ConfigError for an unknown name."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(METHODS)}"
        raise ConfigError(f"server.method: no method {name!r}; {hint}")
    return METHODS[name]
