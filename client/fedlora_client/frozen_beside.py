"""An adapter that stands frozen beside the one that is trained: W + gamma' B' A' + gamma B A, of which A and B train.

Training goes on from what an adapter has learned without changing it, and what is new stays a part of its own, of its own
rank (iterative tuning). The result holds both: their components side by side.
"""

# O out features, I in features

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError
from fedlora.files.at_rest import plain_digest
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.ranks import with_ranks
from fedlora.peft.directory import WEIGHTS, read_peft
from fedlora.peft.finding import find_adapter
from fedlora.peft.for_base import beside_of, check_is_for
from fedlora.peft.origin import Origin, OriginPart
from fedlora.peft.tensors import model_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenBeside:
    """What was read."""

    adapter: Adapter  # of exactly the trained modules
    origin: Origin  # what the result tells of it


def frozen_beside(source: str | Path, trained: Adapter, base: BasePack) -> FrozenBeside:
    """The adapter in `source`, to stand beside `trained`; a module that it lacks gets a component of zeros.

    Raises AdapterError where it cannot be read, AdapterMismatchError where it is for another base, has a module that does
    not train, or more than A and B.
    """
    place, where = find_adapter(source), str(source)
    found = read_peft(place)
    check_is_for(found, base, where)
    if replaced := beside_of(found, base, where, heads=True).replaced:
        raise AdapterMismatchError(
            f"{where}: also replaces {', '.join(sorted(map(model_tensor, replaced))[:4])}, which cannot stand beside "
            "another adapter; go on from it with --adapter, or leave --beside out"
        )
    adapter = found.adapter
    if strange := [module for module in adapter.pairs if module not in trained.pairs]:
        raise AdapterMismatchError(
            f"{where}: has {strange[0]}, which does not train here; set lora.target_modules and lora.layers so that all of "
            "its modules do"
        )
    pairs = {}
    for module, own in trained.pairs.items():
        rows, columns = own.shape
        nothing = LoraPair(np.zeros((1, columns), np.float32), np.zeros((rows, 1), np.float32))
        pairs[module] = adapter.pairs.get(module, nothing)
    config = with_ranks(adapter.config, {module: pair.rank for module, pair in pairs.items()})
    part = OriginPart(name=place.absolute().name, sha256=plain_digest(place / WEIGHTS), weight=1.0)
    return FrozenBeside(
        adapter=Adapter(config, pairs), origin=Origin(how="training beside a frozen adapter", parts=(part,))
    )
