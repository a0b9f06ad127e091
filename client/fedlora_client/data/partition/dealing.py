"""A simulation's one data set, read once and dealt out by a rule: what each of its devices has of it."""

# M records, N devices

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from fedlora.config.hub_source import is_hub
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, Scalar
from fedlora.config.sections import FieldNames
from fedlora.counted import counted
from fedlora.data.datasets import DataSource, DeviceData, partition_of, split_records
from fedlora.data.examples import Example, Labelled, text_of
from fedlora.errors import DataError
from fedlora.numbered import named_in_order

from fedlora_client.data.partition import rules
from fedlora_client.data.partition.topics import topics_of
from fedlora_client.records.arrow_rows import read_hub
from fedlora_client.records.data_file import FileContent, content_of, read_file
from fedlora_client.records.folder import Folder, data_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one device gets: records by their numbers, in the order in which the last are held out."""

    name: str
    records: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """The records of a data set, those of its test set, and the devices' shares."""

    examples: tuple[Example, ...]
    test: tuple[Example, ...]
    shares: tuple[Share, ...]
    left_out: int  # records that say themselves that they are not to be learned
    notices: tuple[str, ...]
    topics: tuple[int, ...] = ()  # of each record, where they were dealt by topic

    def kinds(self) -> list[str]:
        """What each record counts as in a table of the devices: its topic or label; empty where it has neither."""
        if self.topics:
            return [f"topic {topic}" for topic in self.topics]
        return [str(one.label) if isinstance(one, Labelled) else "" for one in self.examples]


def dealt(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """What the device that is configured so gets of `config.path`. Raises DataError.

    A tenth of its share is held out, of each label where all have one; all of it where it never trains. Of the files called
    test (or valid), each device measures every N-th record: together they measure all of them.
    """
    if "data-path" in node:
        raise DataError(
            f"data.partition deals out a simulation's data, and this device has its own ({node['data-path']}); leave "
            "data.partition out of the run's configuration"
        )
    count = node.get("num-partitions")
    if type(count) is not int or count < 1:
        raise DataError(
            f"num-partitions is {count!r}; data.partition needs it in the node's configuration, as 1 or more"
        )
    number = partition_of(node, count, "this simulation's data")
    dealing = dealing_of(config, count)
    share, name = dealing.shares[number], Path(config.path).name
    own = tuple(dealing.examples[record] for record in share.records)
    never_trains = number in config.partition.never_training(count)
    train, held_out = ((), own) if never_trains else split_records(own)
    return DeviceData(
        name=share.name,
        train=train,
        held_out=held_out,
        test=dealing.test[number::count],
        never_trains=never_trains,
        sources=(
            DataSource(
                name=name, train=len(train), held_out=len(held_out), left_out=dealing.left_out if number == 0 else 0
            ),
        ),
        notices=dealing.notices if number == 0 else (),
    )


def dealing_of(config: DataConfig, devices: int) -> Dealing:
    """How `config.path` is dealt out to so many devices: the same for the same data, rule and seed. Raises DataError."""
    return _dealing(config.path, config.fields, config.fields.owner, config.partition, devices)


@lru_cache(maxsize=2)
def _dealing(path: str, fields: FieldNames, _owner: str, partition: PartitionConfig, devices: int) -> Dealing:
    if is_hub(path):
        train, test_records = read_hub(path, fields)
        place, folder = Path(path), Folder(train=[Path(path)])
        contents, tests = [content_of(train)], [content_of(test_records)] if test_records else []
    else:
        place = Path(path)
        folder = data_files(place) if place.is_dir() else Folder(train=[place])
        contents, tests = ([read_file(file, fields) for file in files] for files in (folder.train, folder.held_out))
    examples = tuple(example for content in contents for example in content.all)
    if plain := next((file for file, content in zip(folder.train, contents, strict=True) if _is_text(content)), None):
        raise DataError(
            f"{plain}: plain text, which is one example; data.partition deals out records: give JSON Lines, a JSON list or "
            "a table, or leave data.partition out and give each device a file of its own"
        )
    owners = [owner for content in contents for owner in content.owners]
    test = tuple(example for content in tests for example in content.all)
    notices = [*(folder.notices(place) if place.is_dir() else ())]
    notices += [notice for content in contents for notice in content.notices]
    topics: tuple[int, ...] = ()
    if partition.rule == "natural":
        shares = _natural(owners, devices, partition.least, place, notices)
    else:
        if partition.rule == "topics":
            topics = tuple(topics_of(list(map(text_of, examples)), partition.topics, _generator(partition, 1)))
        try:
            parts = _parts(partition, examples, topics, devices)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        width = len(str(devices - 1))
        shares = [Share(name=f"{number:0{width}}", records=tuple(part.tolist())) for number, part in enumerate(parts)]
    return Dealing(
        examples=examples, test=test, shares=tuple(shares), left_out=sum(content.left_out for content in contents),
        notices=tuple(notices), topics=topics,
    )  # fmt: skip


def _parts(
    partition: PartitionConfig, examples: Sequence[Example], topics: Sequence[int], devices: int
) -> list[rules.Indices]:
    generator = _generator(partition)
    match partition.rule:
        case "iid":
            return rules.iid(len(examples), devices, generator)
        case "quantity":
            return rules.quantity(len(examples), devices, partition.alpha, partition.least, generator)
        case "shards":
            return rules.shards(_labels(examples, partition), devices, partition.shards, generator)
        case "dirichlet":
            labels = _labels(examples, partition)
            return rules.dirichlet(labels, devices, partition.alpha, partition.least, generator)
        case _:
            kinds = list(map(str, topics))
            return rules.dirichlet(kinds, devices, partition.alpha, partition.least, generator)


def _natural(owners: Sequence[str], devices: int, least: int, place: Path, notices: list[str]) -> list[Share]:
    """A device for each owner of enough records, by name."""
    of_owners: dict[str, list[int]] = {}
    for record, owner in enumerate(owners):
        of_owners.setdefault(owner, []).append(record)
    in_order = named_in_order(of_owners)
    names = [name for name in in_order if len(of_owners[name]) >= least]
    few = (
        f"{len(in_order) - len(names)} of {counted(len(in_order), 'owner')} have fewer than data.partition.least = "
        f"{counted(least, 'record')}"
    )
    if len(names) < devices:
        more = f" ({few})" if len(names) < len(in_order) else ""
        raise DataError(
            f"{place}: records of {counted(len(names), 'owner')}{more}, and simulation.devices is {devices}; set it to "
            f"{len(names)}"
        )
    if len(names) < len(in_order):
        notices.append(f"{place}: {few}, and take no part")
    if len(names) > devices:
        notices.append(
            f"{place}: records of {counted(len(names), 'owner')}, of which the first simulation.devices = {devices} by "
            "name take part"
        )
    return [Share(name=name, records=tuple(of_owners[name])) for name in names[:devices]]


def _labels(examples: Sequence[Example], partition: PartitionConfig) -> list[str]:
    labels = []
    for number, example in enumerate(examples, 1):
        if not isinstance(example, Labelled):
            raise DataError(
                f"example {number} has no label, and the rule {partition.rule} deals by labels; give each record a label "
                "(or name its field in data.fields.label), or take the rule topics"
            )
        labels.append(str(example.label))
    return labels


def _is_text(content: FileContent) -> bool:
    return any(isinstance(example, str) for example in content.all)


def _generator(partition: PartitionConfig, what: int = 0) -> np.random.Generator:
    """`default_rng(seed)` for the dealing itself, as other libraries have it; another one for anything else."""
    return np.random.default_rng([partition.seed, what] if what else partition.seed)
