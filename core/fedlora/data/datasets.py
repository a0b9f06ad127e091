"""What a device trains on, and how a data set is found by its name.

A data set is a function `(config, node) -> DeviceData`, offered under the entry-point group `fedlora.datasets`; `node` is
the configuration of the device that asks (in a simulation: `partition-id` and `num-partitions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from fedlora.config.run import DataConfig, Scalar
from fedlora.data.examples import Example, Labelled, size_bytes
from fedlora.errors import DataError
from fedlora.plugins import Plugins

DATASETS = Plugins(group="fedlora.datasets", noun="data set", key="data.name")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A file that examples came from, and how many of them: they stand in the order of the files."""

    name: str
    train: int = 0
    held_out: int = 0
    left_out: int = 0  # records that say themselves that they are not to be learned
    notices: tuple[str, ...] = ()  # what a person should know of it


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceData:
    """The examples of one device: those it trains on, and those it only measures on."""

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    test: tuple[Example, ...] = ()  # its share of a test set that all devices measure together
    never_trains: bool = False  # a simulated one that is there to be measured: all that it has is held out
    # Where they came from, and what was not read: told before a training, and nothing that it depends on.
    sources: tuple[DataSource, ...] = field(default=(), compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def left_out(self) -> int:
        return sum(source.left_out for source in self.sources)

    @property
    def train_bytes(self) -> int:
        return sum(map(size_bytes, self.train))


Dataset = Callable[[DataConfig, Mapping[str, Scalar]], DeviceData]


def find_dataset(name: str) -> Dataset:
    """Raises ConfigError for an unknown name, MissingExtraError where its part is not installed."""
    return cast(Dataset, DATASETS.load(name))


def partition_of(node: Mapping[str, Scalar], count: int, what: str) -> int:
    """Which of `count` parts a simulated device holds: its `partition-id`. Raises DataError where there is none."""
    partition = node.get("partition-id")
    if type(partition) is not int or not 0 <= partition < count:
        raise DataError(
            f"partition-id is {partition!r}; {what} has {count}, from 0 to {count - 1}: "
            "set it in the device's node configuration, or lower simulation.devices"
        )
    return partition


def split_lines(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """(train, held-out): the last `held_out` of the text, cut at the end of a line."""
    cut = text.rfind("\n", 0, int(len(text) * (1 - held_out))) + 1
    return (text[:cut], text[cut:]) if cut else (text, "")


def split_records(
    records: tuple[Example, ...], held_out: float = 0.1
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(train, held-out): the last `held_out` of the records, at least one where there are two.

    Where every record has a label, that part of each label instead, from anywhere: files are often sorted by them.
    """
    if len(records) < 2:
        return records, ()
    count = max(1, int(len(records) * held_out))
    last = set(range(len(records) - count, len(records)))
    labels = [str(record.label) for record in records if isinstance(record, Labelled)]
    if len(labels) == len(records):
        by_label = sorted(range(len(records)), key=labels.__getitem__)
        last = {by_label[(2 * number + 1) * len(records) // (2 * count)] for number in range(count)}
    parts = ([record for number, record in enumerate(records) if (number in last) is held] for held in (False, True))
    train, held = map(tuple, parts)
    return train, held
