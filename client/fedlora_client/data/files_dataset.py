"""The data set `files`: a device's own files, plain text or records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedlora.config.run import DataConfig, Scalar
from fedlora.counted import counted
from fedlora.data.datasets import DataSource, DeviceData
from fedlora.data.examples import Example
from fedlora.errors import DataError, NotRecordsError

from fedlora_client.data.clients import node_name, place_of
from fedlora_client.data.partition.dealing import dealt
from fedlora_client.records.data_file import FileContent, Split, content_of, format_of, read_file
from fedlora_client.records.folder import Folder, data_files
from fedlora_client.records.sqlite_rows import read_query
from fedlora_client.records.withdrawn import Withdrawn, read_withdrawn

_READ_FROM_THE_FIRST = ("text", "lines")  # formats: whatever else a folder holds may be no data


def files(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """What is learned of the device's own `data-path`: a file, or all files of a folder.

    In a folder, files called train, valid and test are what their names say. Otherwise a tenth of each file is held out:
    the last of a text's lines, the last records; where every record has a label, a fair part of each label. A simulated
    device takes its own file or folder in `data.path` instead. On a real one the run's configuration names no path: it
    comes from the server, which must not choose what a device reads. With `data-query`, `data-path` is an SQLite database.
    What the file `data-withdrawn` names is left out. With `data.partition`, `data.path` is dealt out. Raises DataError.
    """
    try:
        return dealt(config, node) if config.partition.rule else _read(config, node)
    except OSError as error:  # a folder that may not be looked into, a file that went away meanwhile
        raise DataError(
            f"{error.filename or node_name(node)}: cannot be read: {error.strerror}; let the device's user read it, or "
            "take it out of its data"
        ) from None


def _read(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    place = place_of(config, node)
    withdrawn = read_withdrawn(Path(str(node["data-withdrawn"]))) if node.get("data-withdrawn") else Withdrawn()
    query = str(node.get("data-query") or "")
    if place.path.is_dir() and query:
        raise DataError(f"{place.path}: a folder, and data-query reads a database; name the file of an SQLite database")
    folder = data_files(place.path) if place.path.is_dir() else Folder(train=[place.path], is_named=True)
    train: list[Example] = []
    held_out: list[Example] = []
    sources = []
    for file in folder.train:
        content = _content(file, config, folder, query)
        if content is None:
            continue
        split = (content.all, ()) if folder.held_out else content.split
        source, first, last = _remaining(_name(file, place.path), content, split, withdrawn)
        sources.append(source)
        train += first
        held_out += last
    for file in folder.held_out:
        content = read_file(file, config.fields)
        source, _, last = _remaining(_name(file, place.path), content, ((), content.all), withdrawn)
        sources.append(source)
        held_out += last
    notices = (*place.notices, *folder.notices(place.path)) if place.path.is_dir() else place.notices
    if not train:
        told = "".join(f"; {notice}" for notice in notices)
        raise DataError(
            f"{place.path}: no text in {counted(len(folder.train), 'file')}; give this device data, or leave it out of "
            f"the run{told}"
        )
    return DeviceData(
        name=place.name, train=tuple(train), held_out=tuple(held_out), sources=tuple(sources), notices=notices
    )


def _content(file: Path, config: DataConfig, folder: Folder, query: str) -> FileContent | None:
    """What a file gives to train on; None where a folder holds something else in it, which is then told."""
    if query:
        return content_of(read_query(file, query, config.fields))
    try:
        return read_file(file, config.fields)
    except NotRecordsError as error:
        if folder.is_named or config.fields.given() or format_of(file) in _READ_FROM_THE_FIRST:
            raise
        folder.left_out[str(error).removeprefix(f"{file}: ")].append(file)
        return None


def _remaining(
    name: str, content: FileContent, split: Split, withdrawn: Withdrawn
) -> tuple[DataSource, tuple[Example, ...], tuple[Example, ...]]:
    """The account of a file, and what of its two parts is not withdrawn: the others stay in the part they were in."""
    first, last = map(withdrawn.remaining, split) if name not in withdrawn.files else ((), ())
    gone = len(split[0]) + len(split[1]) - len(first) - len(last)
    notices = (*content.notices, f"{gone} withdrawn, neither trained nor measured on") if gone else content.notices
    source = DataSource(
        name=name, train=len(first), held_out=len(last), left_out=content.left_out + gone, notices=notices
    )
    return source, first, last


def _name(file: Path, place: Path) -> str:
    return str(file.relative_to(place)) if file != place else file.name
