"""The data set `files`: a device's own files, plain text or records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedlora.config.run import DataConfig, Scalar
from fedlora.data.datasets import DataSource, DeviceData
from fedlora.data.examples import Example
from fedlora.errors import DataError, NotRecordsError

from fedlora_client.data.clients import place_of
from fedlora_client.records.data_file import FileContent, format_of, read_file
from fedlora_client.records.folder import Folder, data_files

_READ_FROM_THE_FIRST = ("text", "lines")  # formats: whatever else a folder holds may be no data


def files(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """What is learned of the device's own `data-path`: a file, or all files of a folder.

    In a folder, files called train, valid and test are what their names say. Otherwise a tenth of each file is held out:
    the last of a text's lines, the last records; where every record has a label, a fair part of each label. A simulated
    device takes its own file or folder in `data.path` instead. On a real one the run's configuration names no path: it
    comes from the server, which must not choose what a device reads. Raises DataError.
    """
    place = place_of(config, node)
    folder = data_files(place.path) if place.path.is_dir() else Folder(train=[place.path], is_named=True)
    train: list[Example] = []
    held_out: list[Example] = []
    sources = []
    for file in folder.train:
        content = _content(file, config, folder)
        if content is None:
            continue
        first, last = (content.all, ()) if folder.held_out else content.split
        sources.append(_source(file, place.path, content, len(first), len(last)))
        train += first
        held_out += last
    for file in folder.held_out:
        content = read_file(file, config.fields)
        sources.append(_source(file, place.path, content, 0, len(content.all)))
        held_out += content.all
    notices = (*place.notices, *folder.notices(place.path)) if place.path.is_dir() else place.notices
    if not train:
        told = "".join(f"; {notice}" for notice in notices)
        raise DataError(
            f"{place.path}: no text in {len(folder.train)} file(s); give this device data, or leave it out of the run{told}"
        )
    return DeviceData(
        name=place.name, train=tuple(train), held_out=tuple(held_out), sources=tuple(sources), notices=notices
    )


def _content(file: Path, config: DataConfig, folder: Folder) -> FileContent | None:
    """What a file gives to train on; None where a folder holds something else in it, which is then told."""
    try:
        return read_file(file, config.fields)
    except NotRecordsError as error:
        if folder.is_named or config.fields.given() or format_of(file) in _READ_FROM_THE_FIRST:
            raise
        folder.left_out[str(error).removeprefix(f"{file}: ")].append(file)
        return None


def _source(file: Path, place: Path, content: FileContent, train: int, held_out: int) -> DataSource:
    name = str(file.relative_to(place)) if file != place else file.name
    return DataSource(name=name, train=train, held_out=held_out, left_out=content.left_out, notices=content.notices)
