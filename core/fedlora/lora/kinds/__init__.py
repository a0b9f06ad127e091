"""What an adapter may add to the frozen base: one kind a file, known by the name that `lora.method` has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fedlora.errors import AdapterMismatchError
from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras, check_extras, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.dora import Dora
from fedlora.lora.kinds.ia3 import Ia3
from fedlora.lora.kinds.kind import Kind, Shape, Weight, heads_of, modules_in, own_tensors
from fedlora.lora.kinds.lora import Lora
from fedlora.lora.kinds.prefix import Prefix
from fedlora.lora.kinds.prompt import Prompt
from fedlora.lora.kinds.vera import Vera

__all__ = ["BY_NAME", "Kind", "adapted_modules", "check_adapter_fits", "heads_in", "kind_of", "new_adapter", "own_in"]

BY_NAME: Mapping[str, Kind] = MappingProxyType(
    {kind.name: kind for kind in (Lora(), Ia3(), Dora(), Vera(), Prompt(), Prefix())}
)


def kind_of(adapter: Adapter | LoraConfig) -> Kind:
    """The kind of an adapter."""
    return BY_NAME[(adapter if isinstance(adapter, LoraConfig) else adapter.config).method]


def own_in(adapter: Adapter) -> Extras:
    """The extra tensors that are the adapter's kind's; none of plain LoRA."""
    return own_tensors(adapter, kind_of(adapter))


def heads_in(adapter: Adapter) -> Extras:
    """The extra tensors of a head."""
    return heads_of(adapter, kind_of(adapter))


def adapted_modules(adapter: Adapter) -> list[str]:
    """The modules that an adapter is on, whatever its kind."""
    return modules_in(adapter, kind_of(adapter))


def new_adapter(config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Adapter:
    """A new adapter, without a head; of most kinds it changes nothing yet."""
    kind = kind_of(config)
    if not kind.has_factors:
        return Adapter(config, {}, extras=kind.initial(config, model, weight, generator))
    plain = initial_adapter(config, model.linear_modules(), generator)
    return Adapter(config, plain.pairs, extras=kind.initial(config, model, weight, generator))


def check_adapter_fits(adapter: Adapter, model: ModelShape, heads: Mapping[str, Shape], where: str) -> None:
    """Raise AdapterMismatchError unless an adapter is for this base: its factors, its kind's tensors, and `heads`."""
    kind = kind_of(adapter)
    if kind.has_factors:
        adapter.check_fits(model.linear_modules(), where)
    elif adapter.pairs:
        raise AdapterMismatchError(f"{where}: an adapter of {kind.title} has no lora_A and lora_B; save it again")
    kind.check(adapter, model, where)
    check_extras(heads_of(adapter, kind), heads, where)
