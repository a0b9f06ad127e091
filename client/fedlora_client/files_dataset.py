"""The data set `files`: a device's own text files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedlora.datasets import DeviceData, split_lines
from fedlora.errors import DataError
from fedlora.run_config import DataConfig, Scalar


def files(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """Every *.txt file below the device's `data-path` (a file, or a directory); in a simulation, below
    `data.path`/PARTITION. The last 10% of each file is held out. Raises DataError."""
    if not config.path and "data-path" not in node:
        raise DataError("the data set files needs the device's data-path (in its node configuration), or data.path")
    place = Path(str(node.get("data-path") or Path(config.path) / str(node.get("partition-id", ""))))
    found = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    if not found:
        raise DataError(f"{place}: no *.txt file below it")
    train: list[str] = []
    held_out: list[str] = []
    for file in found:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"{file}: cannot be read: {error.strerror}; set the node's data-path or data.path"
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 text: byte {error.start} is wrong") from None
        for part, texts in zip(split_lines(text), (train, held_out), strict=True):
            if part:
                texts.append(part)
    return DeviceData(name=place.stem, train=tuple(train), held_out=tuple(held_out))
