"""Packs that are made when they are first asked for and gone with the process: for reading, they are shared."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization

Model = TypeVar("Model")


def packed(checkpoint: Path, directory: Path, quantization: Quantization) -> BasePack:
    """The pack of a checkpoint, made in `directory` and opened."""
    make_pack(str(checkpoint), directory, quantization)
    return open_pack(directory)


def checkpoint_of(directory: Path) -> Path:
    """Where the checkpoint of a tiny pack lies: beside it."""
    return directory.with_name(f"{directory.name}-checkpoint")


def made_once(make: Callable[[Model, Path], BasePack]) -> Callable[[Model], BasePack]:
    """`make`, which makes the pack of a model in a directory, asked only once for each model."""

    @cache
    def pack(model: Model) -> BasePack:
        return make(model, Path(tempfile.mkdtemp(dir=_folder())) / "pack")

    return pack


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="packs-")
    atexit.register(folder.cleanup)
    return Path(folder.name)
