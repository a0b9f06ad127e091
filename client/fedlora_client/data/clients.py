"""Which file or folder of a simulation's `data.path` each device has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora.config.run import DataConfig, Scalar
from fedlora.counted import counted
from fedlora.errors import DataError
from fedlora.numbered import in_order, is_number

from fedlora_client.records.data_file import format_of, stem
from fedlora_client.records.folder import is_document, is_hidden, part_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a device's data lie, and its name."""

    path: Path
    name: str
    notices: tuple[str, ...] = ()


def place_of(config: DataConfig, node: Mapping[str, Scalar]) -> Place:
    """That of the device which is configured so. Raises DataError."""
    if "data-path" in node:
        path = Path(str(node["data-path"]))
        return Place(path=path, name=str(node.get("name") or name_of(path)))
    if "partition-id" in node and config.path:
        return _simulated(Path(config.path), node)
    raise DataError(
        "the data set files expects data-path in the device's node configuration; set it (in a simulation: data.path)"
    )


def node_name(node: Mapping[str, Scalar]) -> str:
    """What a device is called that could not read its data, by its configuration."""
    if node.get("name"):
        return str(node["name"])
    if "data-path" in node:
        return name_of(Path(str(node["data-path"])))
    return str(node.get("partition-id", "without data-path"))


def name_of(place: Path) -> str:
    """The place's own name, without the suffixes of a file."""
    return place.name or place.resolve().name if place.is_dir() else stem(place)


def _simulated(folder: Path, node: Mapping[str, Scalar]) -> Place:
    number, count = node["partition-id"], node.get("num-partitions")
    numbered = folder / str(number)
    if numbered.exists() or (folder / "0").exists() or not folder.is_dir():
        return Place(path=numbered, name=name_of(numbered), notices=_others(folder, number, count))
    places = _named(folder)
    shown = ", ".join(place.name for place in places[:10]) + (", ..." if len(places) > 10 else "")
    if type(number) is not int or not 0 <= number < len(places):
        wanted = count if type(count) is int else f"{number} and more"
        if not places:
            raise DataError(f"{folder}: no file or folder in it is a device's data; put one in for each device")
        raise DataError(
            f"{folder}: data of {counted(len(places), 'device')} ({shown}), and simulation.devices is {wanted}: set it to "
            f"{len(places)}"
        )
    notices = []
    if number == 0 and type(count) is int and count < len(places):
        rest = ", ".join(place.name for place in places[count : count + 10])
        more = ", ..." if len(places) > count + 10 else ""
        notices.append(
            f"{folder}: data of {counted(len(places), 'device')}, of which simulation.devices = {count} take part; "
            f"left out: {rest}{more}"
        )
    names = Counter(name_of(place) for place in places)
    place = places[number]
    own = name_of(place)
    return Place(path=place, name=own if names[own] == 1 else place.name, notices=tuple(notices))


def _others(folder: Path, number: Scalar, count: Scalar | None) -> tuple[str, ...]:
    """What the first of the devices that are numbers is told of what else there is."""
    if number != 0 or type(count) is not int or not folder.is_dir():
        return ()
    numbers = set(map(str, range(count)))
    rest = sorted(
        place.name for place in folder.iterdir()
        if not is_hidden(place.name) and not is_document(place) and place.name not in numbers
    )  # fmt: skip
    shown = ", ".join(rest[:10]) + (", ..." if len(rest) > 10 else "")
    return (f"{folder}: no device's of the simulation's {count}, so left out: {shown}",) if rest else ()


def _named(folder: Path) -> list[Path]:
    """The files and folders that are each a device's, by name. Raises DataError where they are parts of one data set."""
    files = [
        place for place in folder.iterdir()
        if not is_hidden(place.name) and (place.is_dir() or (format_of(place) and not is_document(place)))
    ]  # fmt: skip
    parts = [place.name for place in files if (place.is_dir() or place.is_file()) and part_of(place, folder)]
    if len(parts) == len(files) and len(parts) > 1:
        raise DataError(
            f"{folder}: {', '.join(sorted(parts)[:5])} are parts of one data set, not devices; data.path holds a file or a "
            "folder for each device"
        )
    return in_order(sorted(files), stem) if all(is_number(stem(place)) for place in files) else sorted(files)
