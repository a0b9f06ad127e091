"""Who has how much of what: the examples of a simulation's devices by label or topic, and as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora.config.run import RunConfig
from fedlora.data.examples import Labelled
from fedlora.errors import RunError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.numbered import is_number
from fedlora_client.data.device_data import device_data
from fedlora_client.data.partition.dealing import dealing_of
from rich.table import Table

from fedlora_simulations.narrow import within

FILE = "partition.json"
NEVER = " (never trains)"  # behind the name of a device that data.partition.held_out holds out
EXAMPLES = "examples"  # what they are where they have neither label nor topic
_MOST_EXAMPLES = 1 << 53  # of a device: what is more no picture takes
_MOST_KINDS = 12  # that have a column or a colour of their own
OTHERS = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """{device: {label or topic: examples}}, those that it trains on and those held out; and the size of the test set."""

    devices: Mapping[str, Mapping[str, int]]
    test: int = 0

    @property
    def kinds(self) -> list[str]:
        """The most frequent labels or topics, in their order; `others` at the end where there are more."""
        counts: Counter[str] = Counter()
        for own in self.devices.values():
            counts.update(own)
        frequent = [kind for kind, _ in counts.most_common(_MOST_KINDS)]
        return [*sorted(frequent, key=_in_order), *([OTHERS] if len(counts) > len(frequent) else [])]

    def rows(self) -> list[tuple[str, list[int]]]:
        """(device, its examples of each of `kinds`)"""
        kinds = self.kinds
        named = set(kinds)
        rows = []
        for device, own in self.devices.items():
            others = sum(count for kind, count in own.items() if kind not in named)
            rows.append((device, [others if kind == OTHERS else own.get(kind, 0) for kind in kinds]))
        return rows

    def write(self, run: Path) -> None:
        """RUN/partition.json, which the report shows."""
        content = {"devices": {device: dict(own) for device, own in self.devices.items()}, "test": self.test}
        write_text(run / FILE, json.dumps(content, indent=1) + "\n")


def partition_of(config: RunConfig) -> Partition:
    """That of a simulation, before anything trains. Raises DataError."""
    count = config.simulation.devices
    if config.data.partition.rule:
        dealing = dealing_of(config.data, count)
        kinds = dealing.kinds()
        never = config.data.partition.never_training(count)
        devices = {
            share.name + NEVER * (number in never): _counted(kinds[record] for record in share.records)
            for number, share in enumerate(dealing.shares)
        }
        return Partition(devices=devices, test=len(dealing.test))
    devices = {}
    for number in range(count):
        data = device_data(
            config.data, (("num-partitions", count), ("partition-id", number))
        )  # as devices have read it
        devices[data.name] = _counted(
            str(one.label) if isinstance(one, Labelled) else "" for one in (*data.train, *data.held_out)
        )
    return Partition(devices=devices)


def read_partition(run: Path) -> Partition | None:
    """What `Partition.write` wrote; None in a run of an earlier version. Raises RunError for anything else."""
    path = run / FILE
    if not path.exists():
        return None
    content = read_object(path, RunError, "a run's partition")
    devices, test = content.get("devices"), content.get("test")
    sound = isinstance(devices, dict) and all(
        isinstance(own, dict) and all(map(_is_count, own.values())) for own in devices.values()
    )
    if not sound or not isinstance(test, int) or not _is_count(test) or not devices:
        raise RunError(f"{path}: expected examples by device and kind, and the test set's size; copy the run again")
    return Partition(devices=devices, test=test)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_EXAMPLES


def partition_tables(partition: Partition, width: int = 80) -> list[Table]:
    """A row for each device, a column for each label or topic; more tables than one where `width` has no room for all."""
    kinds, rows = partition.kinds, partition.rows()
    total = [sum(counts[place] for _, counts in rows) for place in range(len(kinds))]
    shown = kinds if kinds != [EXAMPLES] else []
    cells = [
        [device, str(sum(counts)), *(str(count) if count else "" for count in (counts if shown else ()))]
        for device, counts in [*rows, (f"all {len(rows)}", total)]
    ]
    return within(width, "examples of each device", ["device", "all", *shown], cells, kept=2)


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    counts = Counter(kind or EXAMPLES for kind in kinds)
    return {kind: counts[kind] for kind in sorted(counts, key=_in_order)}


def _in_order(kind: str) -> tuple[str, int, str]:
    """Numbers by their size, also behind a word."""
    word, _, number = kind.rpartition(" ")
    return (word, int(number), "") if is_number(number) else (kind, 0, kind)
