"""The adapter inputs of a graph in which modules that read the same input are one product.

For a group of modules M_1, M_2, ... with ranks R_1, R_2, ... and slots A_i [I, R_i], B_i [R_i, O_i] (`slots`):

    A = [A_1 A_2 ...]  [I, R_1 + R_2 + ...]        B = diag(B_1, B_2, ...)  [R_1 + R_2 + ..., O_1 + O_2 + ...]

so that (x A) B holds every module's update side by side. A module without an adapter has rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.exported.slots import slot_names


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
        name_a, name_b = slot_names(joined_name(group))
        shapes |= {name_a: (modules[group[0]][1], -1), name_b: (-1, sum(modules[module][0] for module in group))}
    return shapes


def joined_values(
    slots: Mapping[str, NDArray[np.float32]],  # of single modules
    modules: Mapping[str, tuple[int, int]],
    groups: Sequence[Sequence[str]],
) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of every group of which a module has an adapter."""
    values: dict[str, NDArray[np.float32]] = {}
    for group in groups:
        names = [slot_names(module) for module in group]
        if not any(name_a in slots for name_a, _ in names):
            continue
        columns, sizes = modules[group[0]][1], [modules[module][0] for module in group]
        parts_a = [slots.get(name_a, np.zeros((columns, 0), np.float32)) for name_a, _ in names]
        joined_b = np.zeros((sum(part.shape[1] for part in parts_a), sum(sizes)), np.float32)
        row, column = 0, 0
        for (_, name_b), part, size in zip(names, parts_a, sizes, strict=True):
            if name_b in slots:
                joined_b[row : row + part.shape[1], column : column + size] = slots[name_b]
            row, column = row + part.shape[1], column + size
        name_a, name_b = slot_names(joined_name(group))
        values |= {name_a: np.concatenate(parts_a, 1), name_b: joined_b}
    return values
