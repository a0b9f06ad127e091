"""The adapter inputs of exported graphs, named once for the exporter that writes them and the engines that feed them.

For module M of the base, with weight [O, I] and an adapter of rank R:

    M.lora_A.weight  float32 [I, R]        A transposed
    M.lora_B.weight  float32 [R, O]        scaling * B, transposed

Joined, for modules M_1, M_2, ... that read the same input and are one product, so that (x A) B holds every module's update
side by side; a module without an adapter has rank 0:

    A = [A_1 A_2 ...]  [I, R_1 + R_2 + ...]        B = diag(B_1, B_2, ...)  [R_1 + R_2 + ..., O_1 + O_2 + ...]

What scales modules (`fedlora.lora.output_scale`), of an adapter of DoRA or IA3, for graphs that take it: each by its name,
joined as the outputs are, ones, or zeros of a shift, where a module has none.

A head that an adapter has of its own, in place of the base's: each of its tensors by its name in the model, as it is.

By rows, where every row of a batch has an adapter of its own: A [S, I, R] and B [S, R, O], R the largest rank in the batch.
A row whose adapter is smaller, or which has none, is filled up with zeros, which change nothing. What scales is [S, 1, O].
"""

# S rows, I in features, O out features, R rank

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.exported.cache_prefix import is_of_cache
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.output_scale import INPUT, SCALE, SHIFT, is_scale, rest_of
from fedlora.lora.ranks import with_ranks

BASE_PROPERTY = "fedlora_base"  # in the graph's metadata: the fingerprint of its base


def input_names(module: str) -> tuple[str, str]:
    """The input names of a module's A and B."""
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def input_values(adapter: Adapter) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of every module and extra tensor, contiguous.

    Raises AdapterError where a scaled value is not finite.
    """
    values = {name: np.ascontiguousarray(array) for name, array in adapter.extras.items()}
    for module, pair in adapter.pairs.items():
        name_a, name_b = input_names(module)
        values[name_a] = np.ascontiguousarray(pair.lora_A.T)
        with np.errstate(over="ignore"):
            values[name_b] = np.ascontiguousarray(pair.lora_B.T * np.float32(adapter.config.scaling_of(module)))
        if not (np.isfinite(values[name_a]).all() and np.isfinite(values[name_b]).all()):
            raise AdapterError(f"{module}: scaling * B, or A, is not finite in float32; the adapter cannot be used")
    return values


def digest_of(values: Mapping[str, NDArray[np.float32]]) -> str:
    """sha256, in hexadecimal, over every adapter input's name, shape and bytes, in the order of the names.

    Each part follows its own length, so that no two contents give the same bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(values):
        value = np.ascontiguousarray(values[name], "<f4")
        for part in (
            name.encode(),
            struct.pack(f"<{value.ndim}q", *value.shape),
            value.reshape(-1).view(np.uint8).data,
        ):
            digest.update(struct.pack("<q", len(part)))
            digest.update(part)
    return digest.hexdigest()


def is_of_factors(name: str) -> bool:
    """Whether an adapter input is an A or a B; else it scales a module, or is a head's."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def is_of_head(name: str) -> bool:
    """Whether an adapter input is a tensor of a head."""
    return not (is_of_factors(name) or is_scale(name) or is_of_cache(name))


def input_shapes(modules: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """{input name: shape}, with -1 for the rank."""
    shapes: dict[str, tuple[int, int]] = {}
    for module, (rows, columns) in modules.items():
        name_a, name_b = input_names(module)
        shapes |= {name_a: (columns, -1), name_b: (-1, rows)}
    return shapes


def model_version(fingerprint: str) -> int:
    """The 31 bits of a base's fingerprint that fit into the model version of ONNX Runtime's adapter format."""
    return int(fingerprint[:8], 16) & 0x7FFFFFFF


def joined_name(modules: Sequence[str]) -> str:
    """What a group is called: model.layers.0.self_attn.q_proj+k_proj+v_proj; a single module has its own name."""
    first, *others = modules
    return "+".join([first, *(module.rsplit(".", 1)[-1] for module in others)])


def modules_of(name: str) -> list[str]:
    """The modules of the group that is called `name`: the inverse of `joined_name`."""
    first, *others = name.split("+")
    parent = first.rpartition(".")[0]
    return [first, *(f"{parent}.{leaf}" for leaf in others)]


def joined_shapes(
    modules: Mapping[str, tuple[int, int]],  # {module: (O, I)}
    groups: Sequence[Sequence[str]],
) -> dict[str, tuple[int, int]]:
    """{input name: shape}, with -1 for the rank."""
    shapes: dict[str, tuple[int, int]] = {}
    for group in groups:
        name_a, name_b = input_names(joined_name(group))
        shapes |= {name_a: (modules[group[0]][1], -1), name_b: (-1, sum(modules[module][0] for module in group))}
    return shapes


def joined_scale_shapes(
    shapes: Mapping[str, tuple[int]],  # of single modules: fedlora.lora.output_scale.scale_shapes
    groups: Sequence[Sequence[str]],
) -> dict[str, tuple[int]]:
    """{input name: shape}"""
    joined = dict[str, tuple[int]]()
    for group in groups:
        for word in (SCALE, SHIFT):
            if sizes := [shapes[module + word][0] for module in group if module + word in shapes]:
                joined[joined_name(group) + word] = (sum(sizes),)
        joined |= {own: shapes[own] for module in group if (own := module + INPUT) in shapes}
    return joined


def joined_values(
    inputs: Mapping[str, NDArray[np.float32]],  # of single modules
    modules: Mapping[str, tuple[int, int]],
    groups: Sequence[Sequence[str]],
) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of every group of which a module has an adapter, and the tensors of a head."""
    values = {name: value for name, value in inputs.items() if is_of_head(name)}
    for group in groups:
        values |= _joined_scales(inputs, [(module, modules[module][0]) for module in group])
        names = [input_names(module) for module in group]
        if not any(name_a in inputs for name_a, _ in names):
            continue
        columns, sizes = modules[group[0]][1], [modules[module][0] for module in group]
        parts_a = [inputs.get(name_a, np.zeros((columns, 0), np.float32)) for name_a, _ in names]
        joined_b = np.zeros((sum(part.shape[1] for part in parts_a), sum(sizes)), np.float32)
        row, column = 0, 0
        for (_, name_b), part, size in zip(names, parts_a, sizes, strict=True):
            if name_b in inputs:
                joined_b[row : row + part.shape[1], column : column + size] = inputs[name_b]
            row, column = row + part.shape[1], column + size
        name_a, name_b = input_names(joined_name(group))
        values |= {name_a: np.concatenate(parts_a, 1), name_b: joined_b}
    return values


def _joined_scales(
    inputs: Mapping[str, NDArray[np.float32]], group: Sequence[tuple[str, int]]
) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of what scales the modules of a group, (name, O); nothing where none is scaled."""
    values, name = dict[str, NDArray[np.float32]](), joined_name([module for module, _ in group])
    for word in (SCALE, SHIFT):
        if any(module + word in inputs for module, _ in group):
            values[name + word] = np.concatenate(
                [inputs.get(module + word, np.full(rows, rest_of(word), np.float32)) for module, rows in group]
            )
    return values | {own: inputs[own] for module, _ in group if (own := module + INPUT) in inputs}


def row_values(
    rows: Sequence[
        Mapping[str, NDArray[np.float32]]
    ],  # of each row's adapter, as `input_values` gives them; empty: none
    modules: Mapping[str, tuple[int, int]],  # {module: (O, I)}
    scales: Mapping[str, tuple[int, ...]] | None = None,  # {input: shape} of what the graph takes to scale modules
) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of every module. Raises AdapterMismatchError for what scales where the graph takes none."""
    values, scales = dict[str, NDArray[np.float32]](), scales or {}
    unknown = {name for own in rows for name in own if is_scale(name)} - scales.keys()
    if unknown:
        raise AdapterMismatchError(f"{min(unknown)}: the graph has no input for it; export it with --output-scales")
    for module, (out_features, in_features) in modules.items():
        name_a, name_b = input_names(module)
        rank = max(own[name_a].shape[1] if name_a in own else 0 for own in rows)
        values[name_a] = np.zeros((len(rows), in_features, rank), np.float32)
        values[name_b] = np.zeros((len(rows), rank, out_features), np.float32)
        for row, own in enumerate(rows):
            if name_a in own:
                values[name_a][row, :, : own[name_a].shape[1]] = own[name_a]
                values[name_b][row, : own[name_b].shape[0]] = own[name_b]
    for name, (size,) in scales.items():
        if any(name in own for own in rows):
            rest = np.full(size, rest_of(name), np.float32)
            values[name] = np.stack([own.get(name, rest)[None] for own in rows])
        else:  # not left out: what an earlier step was given would stay bound
            values[name] = np.full((len(rows), 1, 1), rest_of(name), np.float32)
    return values


def weighted_sum(parts: Sequence[tuple[Mapping[str, NDArray[np.float32]], float]]) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of one adapter whose updates are sum_i w_i (x A_i) B_i, of those that have the module.

        A = [A_1 A_2 ...]  [I, R_1 + R_2 + ...]        B = [w_1 B_1; w_2 B_2; ...]  [R_1 + R_2 + ..., O]

    A head is sum_i w_i head_i, and each has one, or none has.
    """
    values: dict[str, NDArray[np.float32]] = {}
    for name in dict.fromkeys(name for inputs, _ in parts for name in inputs):
        own = [(inputs[name], np.float32(weight)) for inputs, weight in parts if name in inputs]
        with np.errstate(over="ignore", invalid="ignore"):  # whoever computes with it tells what is not finite
            if not is_of_factors(name):
                values[name] = np.asarray(sum(value * weight for value, weight in own), np.float32)
            elif name.endswith(input_names("")[0]):
                values[name] = np.concatenate([value for value, _ in own], axis=1)
            else:
                values[name] = np.concatenate([value * weight for value, weight in own], axis=0)
    return values


def adapter_of_inputs(values: Mapping[str, NDArray[np.float32]]) -> Adapter:
    """The adapter whose inputs these are, with its head and with scaling 1: what `input_values` has scaled stays in B."""
    modules = modules_in(values)
    pairs = {}
    for module in modules:
        name_a, name_b = input_names(module)
        pairs[module] = LoraPair(np.ascontiguousarray(values[name_a].T), np.ascontiguousarray(values[name_b].T))
    ranks = {module: pair.rank for module, pair in pairs.items()}
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))
    config = LoraConfig(rank=1, alpha=1.0, target_modules=leaves)
    extras = {name: value for name, value in values.items() if not is_of_factors(name)}
    return Adapter(with_ranks(config, ranks), pairs, extras=extras)


def modules_in(names: Iterable[str]) -> list[str]:
    """The modules that have an A among these inputs, in their order."""
    end = input_names("")[0]
    return [name.removesuffix(end) for name in names if name.endswith(end)]
