"""What a combination of adapters will be, before a number is computed: its modules, their ranks, its base.

Each module is combined from the adapters that have it, as PEFT does; the shapes and the bases must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlora.base.pack import BasePack
from fedlora.combine.beside import combined_heads
from fedlora.combine.sources import Source
from fedlora.combine.ways import Combination
from fedlora.counted import counted
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.lora.adapter import Extras, check_shapes_fit
from fedlora.lora.config import MAX_RANK, LoraConfig
from fedlora.lora.layers import layers_of
from fedlora.lora.ranks import with_ranks
from fedlora.peft.misplaced import check_modules

_MOST_ENTRIES = 1 << 26  # of a weight that no base has told of: 256 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The adapter that is made."""

    config: LoraConfig  # every module's scaling is 1
    shapes: dict[str, tuple[int, int]]  # {module: (O, I)}
    base_fingerprint: str | None
    base_name: str | None
    heads: Extras = field(default_factory=dict)


def plan_of(adapters: Sequence[Source], combination: Combination, base: BasePack | None) -> Plan:
    """Raises AdapterMismatchError or ConfigError for adapters that cannot be combined so."""
    for adapter in adapters:
        _check_fits(adapter, base)
    fingerprint, name = base_of(adapters, base)
    heads = combined_heads(adapters, combination.weights, base)
    shapes: dict[str, tuple[int, int]] = {}
    first: dict[str, Source] = {}
    for adapter in adapters:
        for module, shape in adapter.shapes.items():
            if shapes.setdefault(module, shape) != shape:
                raise AdapterMismatchError(
                    f"{adapter.directory}: {module} updates a weight {list(shape)}, in {first[module].directory} it is "
                    f"{list(shapes[module])}: they are for different bases; combine adapters of one"
                )
            first.setdefault(module, adapter)
    if base is None:
        _check_dense(shapes, first, combination)
    largest = max(adapter.config.rank_of(module) for adapter in adapters for module in adapter.shapes)
    ranks = {module: _rank(module, shape, adapters, combination, largest) for module, shape in shapes.items()}
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in shapes))
    layers = () if all(map(_has_all_layers, adapters)) else layers_of(shapes)
    config = LoraConfig(rank=1, alpha=1.0, target_modules=leaves, layers=layers)
    return Plan(
        config=with_ranks(config, ranks), shapes=shapes, base_fingerprint=fingerprint, base_name=name, heads=heads
    )


def check_number(adapters: Sequence[object], combination: Combination) -> None:
    """Raise ConfigError unless there are adapters, and a weight for each."""
    if not adapters:
        raise ConfigError("expected at least one adapter to combine")
    if len(adapters) != len(combination.weights):
        raise ConfigError(
            f"--weights: expected one for each of the {counted(len(adapters), 'adapter')}, got "
            f"{len(combination.weights)}: give {','.join(['1'] * len(adapters))} or others"
        )


def _rank(
    module: str, shape: tuple[int, int], adapters: Sequence[Source], combination: Combination, largest: int
) -> int:
    having = [adapter for adapter in adapters if module in adapter.shapes]
    ranks = [adapter.config.rank_of(module) for adapter in having]
    if combination.is_truncated:
        return min(combination.svd_rank or largest, *shape)
    if combination.how == "cat":
        if sum(ranks) > MAX_RANK:
            raise ConfigError(
                f"{module}: cat adds ranks, {' + '.join(map(str, ranks))} = {sum(ranks)}; at most {MAX_RANK} are stored: "
                "take --how svd"
            )
        return sum(ranks)
    for adapter, rank in zip(having, ranks, strict=True):
        if rank != ranks[0]:
            raise AdapterMismatchError(
                f"{adapter.directory}: {module} has rank {rank}, in {having[0].directory} it has {ranks[0]}; "
                f"{combination.how} adds factors, which needs equal ranks: take --how cat, "
                f"{'svd' if combination.how == 'linear' else f'{combination.how}-svd'} or another that ends in svd"
            )
    return ranks[0]


def _check_dense(shapes: Mapping[str, tuple[int, int]], first: Mapping[str, Source], combination: Combination) -> None:
    """Raise AdapterMismatchError for matrices [O, I] that would be made of nothing but the word of a small file."""
    for module, (rows, columns) in shapes.items():
        if combination.makes_products and rows * columns > _MOST_ENTRIES:
            raise AdapterMismatchError(
                f"{first[module].directory}: {module} updates a weight [{rows}, {columns}], and {combination.how} makes "
                "all of its entries; pass --base PACK, which says whether there is such a weight, or take --how svd"
            )


def _check_fits(adapter: Source, base: BasePack | None) -> None:
    if base is not None:
        check_modules(adapter.shapes, base, str(adapter.directory))
        check_shapes_fit(adapter.shapes, base.model.linear_modules(), str(adapter.directory))


def base_of(adapters: Sequence[Source], base: BasePack | None) -> tuple[str | None, str | None]:
    """(fingerprint, name) of the one base of all."""
    recorded: dict[str | None, Source] = {}
    for adapter in adapters:
        recorded.setdefault(adapter.base_fingerprint, adapter)
    known = [fingerprint for fingerprint in recorded if fingerprint is not None]
    if len(known) > 1:
        one, other = (recorded[fingerprint] for fingerprint in known[:2])
        raise AdapterMismatchError(
            f"{other.directory}: trained on base {other.base_fingerprint!s:.16}, {one.directory} on "
            f"{one.base_fingerprint!s:.16}; combine adapters of one base"
        )
    if base is not None:
        if known and known[0] != base.fingerprint:
            raise AdapterMismatchError(
                f"{recorded[known[0]].directory}: trained on base {known[0][:16]}, but {base.directory} is "
                f"{base.fingerprint[:16]}; give --base its own"
            )
        return base.fingerprint, base.source
    if known and None in recorded:
        raise AdapterMismatchError(
            f"{recorded[None].directory}: does not record its base, as PEFT's own files do not, and "
            f"{recorded[known[0]].directory} was trained on {known[0][:16]}; pass --base PACK"
        )
    names: dict[Any, Source] = {}
    for adapter in adapters:
        names.setdefault(str(adapter.peft_config.get("base_model_name_or_path")), adapter)
    if not known and len(names) > 1:
        (one_name, one), (other_name, other) = list(names.items())[:2]
        raise AdapterMismatchError(
            f"{other.directory}: made for {other_name:.80}, {one.directory} for {one_name:.80}; where they are one model, "
            "pass --base PACK"
        )
    name = adapters[0].peft_config.get("base_model_name_or_path")
    return (known[0] if known else None), name if isinstance(name, str) else None


def _has_all_layers(adapter: Source) -> bool:
    """Whether its configuration names modules by their last parts, in all layers."""
    targets = adapter.peft_config.get("target_modules")
    by_leaf = isinstance(targets, list) and not any("." in str(target) for target in targets)
    return not adapter.config.layers and by_leaf
