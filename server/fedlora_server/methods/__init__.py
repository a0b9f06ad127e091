"""Aggregation methods: one file each. To add one, write its file and name it here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedlora.errors import ConfigError
from fedlora.lora import LoraConfig

from fedlora_server.methods.fedavg import FedAvg
from fedlora_server.methods.fold import Fold
from fedlora_server.methods.svd import Svd

METHODS: Mapping[str, Callable[[LoraConfig], Fold]] = MappingProxyType({"fedavg": FedAvg, "svd": Svd})


def find_method(name: str) -> Callable[[LoraConfig], Fold]:
    """Raises ConfigError for an unknown name."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(METHODS)}"
        raise ConfigError(f"server.method: no method {name!r}; {hint}")
    return METHODS[name]
