"""A Hugging Face checkpoint, one file or sharded, read tensor by tensor and row by row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import CheckpointError, MissingExtraError, TensorFileError
from fedlora.files.documents import read_object
from fedlora.files.tensor_file import TensorEntry, TensorFile, read_rows

# A sharded giant's header may be larger than what is taken from a stranger's adapter.
_MAX_HEADER_BYTES = 1 << 26
_MAX_TENSORS = 1 << 17


def find_checkpoint(source: str) -> Path:
    """The directory of `source`: a local path, or a hub id, which is downloaded (needs a network)."""
    local = Path(source)
    if local.is_dir():
        return local
    # A path cannot be a hub id, and nobody who mistyped a path wants a download.
    if local.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"{source}: no such directory; expected one with config.json and model.safetensors")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise MissingExtraError(
            f"{source}: no such directory, and a hub id needs huggingface_hub; pip install 'fedlora[hub]'"
        ) from None
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no local directory, and the hub does not give it: {str(error).splitlines()[0]}; "
            "pass a directory with config.json and model.safetensors, or check the id and the network"
        ) from None


class Checkpoint:
    """An opened checkpoint directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: dict[str, Any] = read_object(directory / "config.json", CheckpointError, "a model's config.json")
        self._tensors: dict[str, tuple[Path, TensorEntry]] = {}
        for file in self._weight_files():
            try:
                entries = TensorFile(file, max_header_bytes=_MAX_HEADER_BYTES, max_tensors=_MAX_TENSORS).entries
            except TensorFileError as error:
                raise CheckpointError(str(error)) from None
            self._tensors |= {name: (file, entry) for name, entry in entries.items()}

    def _weight_files(self) -> list[Path]:
        single, index = self.directory / "model.safetensors", self.directory / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        if not index.is_file():
            raise CheckpointError(
                f"{self.directory}: no model.safetensors and no model.safetensors.index.json; "
                "expected a Hugging Face checkpoint in the safetensors format"
            )
        weight_map = read_object(index, CheckpointError, "the index of a sharded checkpoint").get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index}: weight_map must map tensor names to file names; copy the checkpoint again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or "\0" in name or not (self.directory / name).is_file():
                raise CheckpointError(f"{index}: shard {name!r} is not a file of {self.directory}; copy it there")
        return [self.directory / name for name in names]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the checkpoint holds tensor `name` with `shape`."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing; is the checkpoint of another family?")
        got = self._tensors[name][1]
        if got.shape != shape:
            raise CheckpointError(f"{self.directory}: {name} has shape {got.shape}; config.json implies {shape}")
        if got.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{self.directory}: {name} has dtype {got.dtype}; expected F32, F16 or BF16")

    def columns(self, name: str) -> int:
        """The length of a row."""
        return self._tensors[name][1].shape[1]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor; raises CheckpointError where a value is not finite."""
        file, entry = self._tensors[name]
        descriptor = os.open(file, os.O_RDONLY)
        try:
            array = read_rows(descriptor, entry, start, stop)
        finally:
            os.close(descriptor)
        if not np.isfinite(array).all():
            raise CheckpointError(f"{file}: {name} holds NaN or infinity in rows {start} to {stop}; it cannot be used")
        return array
