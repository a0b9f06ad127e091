"""The data set `files`: a device's own text files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedlora.datasets import DeviceData, split_lines
from fedlora.errors import DataError
from fedlora.run_config import DataConfig, Scalar


def files(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """Every *.txt file below the device's own `data-path` (a file, or a directory), the last 10% of each held out.

    A simulated device takes `data.path`/PARTITION instead. On a real one the run's configuration names no path: it comes
    from the server, which must not choose what a device reads. Raises DataError.
    """
    if "data-path" in node:
        place = Path(str(node["data-path"]))
    elif "partition-id" in node and config.path:
        place = Path(config.path) / str(node["partition-id"])
    else:
        raise DataError("the data set files needs data-path in the device's node configuration (simulated: data.path)")
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
