"""The adapter inputs of a graph in which every row of a batch has an adapter of its own.

For each module A [S, I, R] and B [S, R, O], R the largest rank in the batch: a row whose adapter is smaller, or which has
none, is filled up with zeros, which change nothing.
"""

# S rows, I in features, O out features, R rank

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.exported.slots import slot_names


def row_values(
    rows: Sequence[Mapping[str, NDArray[np.float32]]],  # the slots of each row's adapter (`slots`); empty: none
    modules: Mapping[str, tuple[int, int]],  # {module: (O, I)}
) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of every module."""
    values: dict[str, NDArray[np.float32]] = {}
    for module, (out_features, in_features) in modules.items():
        name_a, name_b = slot_names(module)
        rank = max(own[name_a].shape[1] if name_a in own else 0 for own in rows)
        values[name_a] = np.zeros((len(rows), in_features, rank), np.float32)
        values[name_b] = np.zeros((len(rows), rank, out_features), np.float32)
        for row, own in enumerate(rows):
            if name_a in own:
                values[name_a][row, :, : own[name_a].shape[1]] = own[name_a]
                values[name_b][row, : own[name_b].shape[0]] = own[name_b]
    return values
