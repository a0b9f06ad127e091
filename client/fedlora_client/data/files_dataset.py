"""The data set `files`: a device's own files, plain text or JSON Lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedlora.config.run import DataConfig, Scalar
from fedlora.data.datasets import DeviceData, split_lines, split_records
from fedlora.data.examples import Example
from fedlora.errors import DataError

from fedlora_client.data.jsonl import SUFFIXES, read_jsonl

_NOT_TEXT = (".json", ".csv", ".parquet")  # what a person may take for a data file of ours
_PATTERNS = ("*.txt", *(f"*{suffix}" for suffix in SUFFIXES))


def files(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """Every *.txt, *.jsonl and *.jsonl.gz below the device's own `data-path` (a file, or a directory).

    A tenth of each file is held out: the last of a text's lines, the last records of JSON Lines; where every record has
    a label, a fair part of each label. A simulated device takes `data.path`/PARTITION instead. On a real one the run's
    configuration names no path: it comes from the server, which must not choose what a device reads. Raises DataError.
    """
    if "data-path" in node:
        place = Path(str(node["data-path"]))
    elif "partition-id" in node and config.path:
        place = Path(config.path) / str(node["partition-id"])
    else:
        raise DataError("the data set files needs data-path in the device's node configuration (simulated: data.path)")
    if place.suffix in _NOT_TEXT:
        raise DataError(f"{place}: neither text nor JSON Lines; a file with a JSON object a line ends in {SUFFIXES[0]}")
    found = sorted(file for pattern in _PATTERNS for file in place.rglob(pattern)) if place.is_dir() else [place]
    if not found:
        raise DataError(f"{place}: no {_PATTERNS[0]} file below it, nor {' or '.join(_PATTERNS[1:])}")
    train: list[Example] = []
    held_out: list[Example] = []
    for file in found:
        first, last = _split(file)
        train += first
        held_out += last
    if not train:
        raise DataError(f"{place}: no text in {len(found)} file(s); give this device data, or leave it out of the run")
    return DeviceData(name=_name(place), train=tuple(train), held_out=tuple(held_out))


def _split(file: Path) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(train, held-out) of one file."""
    if file.name.endswith(SUFFIXES):
        return split_records(read_jsonl(file))
    first, last = split_lines(_read_text(file))
    return (first,) if first else (), (last,) if last else ()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; give the path of the data") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: byte {error.start} is wrong") from None


def _name(place: Path) -> str:
    """The place's own name, without the suffixes of a file."""
    return place.stem.removesuffix(".jsonl")
