"""The rules by which records are dealt out: which of M records each of N devices gets.

Every rule gives each record to one device, and the same seed gives the same devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedlora.counted import counted
from fedlora.errors import DataError
from fedlora.numbered import named_in_order
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_MOST_TRIES = 1000


def iid(records: int, devices: int, generator: np.random.Generator) -> list[Indices]:
    """All records in a random order, cut into parts whose sizes differ by at most one."""
    return np.array_split(generator.permutation(records), devices)


def quantity(records: int, devices: int, alpha: float, least: int, generator: np.random.Generator) -> list[Indices]:
    """As `iid`, in parts whose sizes are drawn from a Dirichlet distribution: `least` each, and shares of the rest."""
    _check_enough(records, devices, least)
    shares = generator.dirichlet(np.full(devices, alpha))
    ends = least * np.arange(1, devices) + (np.cumsum(shares)[:-1] * (records - least * devices)).astype(np.int64)
    return np.split(generator.permutation(records), ends)


def dirichlet(
    labels: Sequence[str], devices: int, alpha: float, least: int, generator: np.random.Generator
) -> list[Indices]:
    """Each label's records in shares that are drawn from a Dirichlet distribution (Hsu et al., arXiv:1909.06335).

    All is drawn again until every device has `least` records, as Flower Datasets' DirichletPartitioner does: for the same
    records and seed the sizes are the same.
    """
    _check_enough(len(labels), devices, least)
    of_labels = by_label(labels)
    for _ in range(_MOST_TRIES):
        parts: list[list[Indices]] = [[] for _ in range(devices)]
        for records in of_labels.values():
            shares = generator.dirichlet(np.full(devices, alpha))
            ends = (np.cumsum(shares) * len(records)).astype(np.int64)[:-1]
            for part, some in zip(parts, np.split(records, ends), strict=True):
                part.append(some)
        dealt = [np.concatenate(part) for part in parts]
        if min(map(len, dealt)) >= least:
            for own in dealt:
                generator.shuffle(own)
            return dealt
    raise DataError(
        f"in {_MOST_TRIES} tries no dealing by labels with alpha {alpha:g} gave each of {counted(devices, 'device')} "
        f"{least} of "
        f"{counted(len(labels), 'record')}; lower data.partition.least or simulation.devices, or raise data.partition.alpha"
    )


def shards(labels: Sequence[str], devices: int, each: int, generator: np.random.Generator) -> list[Indices]:
    """The records in the order of their labels, cut into shards of one size, of which each device gets some at random
    (McMahan et al., arXiv:1602.05629, section 3).
    """
    if len(labels) < devices * each:
        raise DataError(
            f"{counted(len(labels), 'record')}: fewer than {counted(devices, 'device')} of {counted(each, 'shard')}; "
            "lower data.partition.shards or simulation.devices"
        )
    ordered = np.concatenate([generator.permutation(records) for records in by_label(labels).values()])
    pieces = np.array_split(ordered, devices * each)
    turns = generator.permutation(devices * each).reshape(devices, each)
    return [np.concatenate([pieces[piece] for piece in mine]) for mine in turns]


def by_label(labels: Sequence[str]) -> dict[str, Indices]:
    """The records of each label, the labels in their order: as numbers where all of them are."""
    found: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        found.setdefault(label, []).append(number)
    return {label: np.array(found[label], np.int64) for label in named_in_order(found)}


def _check_enough(records: int, devices: int, least: int) -> None:
    if records < devices * least:
        raise DataError(
            f"{counted(records, 'record')}: fewer than {counted(devices, 'device')} of at least {least}; lower "
            "data.partition.least or simulation.devices"
        )
