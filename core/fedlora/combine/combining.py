"""Adapters on disk become one adapter on disk, module by module.

In memory are the factors of one module of each adapter, and of the result; with a way that ends in -svd, but svd itself,
up to six matrices [O, I] of that module besides. Nothing depends on the number of modules, unless adapters are encrypted
at rest, or of other kinds than LoRA: those are in memory as a whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import BasePack
from fedlora.combine.beside import combined_own
from fedlora.combine.modules import Part, combined, squared_error
from fedlora.combine.plan import Plan, base_of, check_number, plan_of
from fedlora.combine.sources import Source, are_of_products, as_products, open_source
from fedlora.combine.ways import Combination
from fedlora.errors import AdapterError, ConfigError
from fedlora.files.atomic import check_directory, whole_directory
from fedlora.files.bounded import read_bounded
from fedlora.files.tensor_file import TensorPlan, write_tensor_file
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import adapted_modules
from fedlora.peft.configuration import fresh_config
from fedlora.peft.directory import PeftDirectory, metadata_of, write_peft
from fedlora.peft.finding import find_adapter
from fedlora.peft.layout import COMPANIONS, CONFIG, PREFIX, WEIGHTS, factor_name, saved_parts
from fedlora.peft.origin import MOST_CHARACTERS, MOST_PARTS, Origin, OriginPart

_MAX_COMPANION_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """What was made."""

    config: LoraConfig
    modules: int
    distance: (
        float | None
    )  # from the weighted sum of products, in parts of that sum's norm; None where that is no number
    differing: tuple[str, ...]  # files of how to speak with an adapter that are not the same in all, and not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the result tells of how it was made, where that is more than the combination and the directories' names."""

    how: str
    names: tuple[str, ...]  # of the parts


def combine(
    sources: Sequence[str | Path], output: Path, combination: Combination, *, base: BasePack | None = None,
    told: Told | None = None, replace: bool = False,
) -> Combined:  # fmt: skip
    """Write the combination of PEFT directories, or hub ids, as a PEFT directory. Raises AdapterError and ConfigError."""
    check_directory(output, replace=CONFIG if replace else None)
    if len(sources) > MOST_PARTS:
        raise ConfigError(f"{len(sources)} adapters; at most {MOST_PARTS} are combined at a time: combine some first")
    adapters: Sequence[Source] = [open_source(find_adapter(source)) for source in sources]
    check_number(adapters, combination)
    told = told or Told(how=str(combination), names=tuple(a.directory.absolute().name for a in adapters))
    shares = zip(told.names, adapters, combination.weights, strict=True)
    parts = (OriginPart(name=n[:MOST_CHARACTERS], sha256=a.sha256(), weight=float(w)) for n, a, w in shares)
    origin = Origin(how=told.how, parts=tuple(parts))
    same, differing = _companions(adapters)
    if not are_of_products(adapters, combination):
        fingerprint, name = base_of(adapters, base)
        adapter = combined_own(adapters, combination.weights, base)
        content = PeftDirectory(
            adapter=adapter, base_fingerprint=fingerprint, origin=origin, config=adapters[0].peft_config
        )
        texts = {file: _text(adapters[0].directory / file, said) for file, said in same.items()}
        write_peft(output, content, base_name=name, texts=texts, replace=replace)
        modules = len(adapted_modules(adapter))
        return Combined(config=adapter.config, modules=modules, distance=None, differing=tuple(differing))
    adapters = [as_products(adapter, base) for adapter in adapters]
    plan = plan_of(adapters, combination, base)
    distances: list[tuple[float, float]] = []
    pending: dict[str, NDArray[np.float32]] = {}  # B, which follows A in the file

    def fill(planned: TensorPlan) -> Iterator[NDArray[Any]]:
        if planned.name in pending:
            yield pending.pop(planned.name)
            return
        if planned.name in heads:
            yield heads[planned.name]
            return
        module = of_module[planned.name]
        parts = _parts(adapters, module, combination)
        pair = _checked(module, parts, combination, plan)
        with np.errstate(over="ignore", invalid="ignore"):  # a square may leave float32 where its root does not
            distances.append(squared_error(parts, pair))
        pending[factor_name(module, "lora_B")] = pair.lora_B
        yield pair.lora_A

    heads = {f"{PREFIX}{name}": value for name, value in plan.heads.items()}
    of_module = {factor_name(module, factor): module for module in plan.shapes for factor in ("lora_A", "lora_B")}
    plans = []
    for name, module in of_module.items():
        (rows, columns), rank = plan.shapes[module], plan.config.rank_of(module)
        shape = (rank, columns) if name == factor_name(module, "lora_A") else (rows, rank)
        plans.append(TensorPlan(name=name, dtype="F32", shape=shape))
    plans += [TensorPlan(name=name, dtype="F32", shape=value.shape) for name, value in heads.items()]
    config = fresh_config(plan.config, plan.shapes, plan.base_name, extras=plan.heads)
    if plan.heads:
        config["modules_to_save"] = saved_parts(plan.heads)
    Adapter(plan.config, {}, extras=plan.heads).check_finite("the combination")
    with whole_directory(output, replace=CONFIG if replace else None) as aside:
        for file in same:
            (aside / file).write_bytes(same[file])
        (aside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tensor_file(aside / WEIGHTS, plans, fill, metadata_of(plan.base_fingerprint, origin), at_rest=WEIGHTS)
    error, norm = (sum(each) for each in zip(*distances, strict=True))
    distance = math.sqrt(error / norm) if norm and math.isfinite(error) and math.isfinite(norm) else None
    return Combined(config=plan.config, modules=len(plan.shapes), distance=distance, differing=tuple(differing))


def combined_adapter(adapters: Sequence[Source], combination: Combination) -> Adapter:
    """What `combine` would write, in memory. Raises AdapterError and ConfigError."""
    check_number(adapters, combination)
    if not are_of_products(adapters, combination):
        return combined_own(adapters, combination.weights, None)
    plan = plan_of([as_products(adapter, None) for adapter in adapters], combination, None)
    pairs = {
        module: _checked(module, _parts(adapters, module, combination), combination, plan) for module in plan.shapes
    }
    return Adapter(plan.config, pairs, extras=plan.heads)


def _parts(adapters: Sequence[Source], module: str, combination: Combination) -> list[Part]:
    """The shares of those adapters that have the module."""
    return [
        Part(place=place, pair=a.pair(module), scaling=a.config.scaling_of(module), weight=float(weight))
        for place, (a, weight) in enumerate(zip(adapters, combination.weights, strict=True))
        if module in a.shapes
    ]


def _checked(module: str, parts: Sequence[Part], combination: Combination, plan: Plan) -> LoraPair:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            pair = combined(module, parts, combination, plan.config.rank_of(module))
    except np.linalg.LinAlgError:  # what overflows has no singular values
        raise AdapterError(
            f"the combination: {module}: its numbers leave the range of float32; give smaller --weights"
        ) from None
    Adapter(plan.config, {module: pair}).check_finite("the combination")
    return pair


def _companions(adapters: Sequence[Source]) -> tuple[dict[str, bytes], list[str]]:
    """The files that say how to speak with an adapter: (those that are the same in all, the others that are there)."""
    same: dict[str, bytes] = {}
    differing: list[str] = []
    for name in COMPANIONS:
        files = [adapter.directory / name for adapter in adapters]
        there = [file.is_file() for file in files]
        if any(there):
            contents = {_bounded(file) for file in files} if all(there) else set()
            if len(contents) == 1:
                same[name] = contents.pop()
            else:
                differing.append(name)
    return same, differing


def _text(file: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise AdapterError(
            f"{file}: not UTF-8 text: byte {error.start} is wrong; save it again, or remove it"
        ) from None


def _bounded(file: Path) -> bytes:
    try:
        return read_bounded(file, _MAX_COMPANION_BYTES)
    except OSError as error:
        raise AdapterError(
            f"{file}: cannot be read: {error.strerror}; at most {_MAX_COMPANION_BYTES} bytes are: remove it, or make it "
            "shorter"
        ) from None
