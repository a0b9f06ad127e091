"""What a file is by its first bytes, and what is said where a file with tensors was expected."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fedlora.errors import ConfigError, TensorFileError
from fedlora.files.documents import read_object
from fedlora.files.file_kind import kind_of
from fedlora.files.tensor_file import TensorFile

from tests.tiny.checkpoints import write_tensors

_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def _of(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.safetensors", b"x" * 100)


def _tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))


# {what lies there: (its bytes, what is said of it, what can be done)}
KINDS: dict[str, tuple[bytes, str, str]] = {
    "pointer": (_POINTER, "a git-lfs pointer", "git lfs pull"),
    "page": (b"\n<!doctype HTML><html lang=en>", "a web page", "hf download"),
    "error of a store": (b'<?xml version="1.0"?><Error>AccessDenied', "a web page", "hf download"),
    "empty": (b"", "an empty file", "again"),
    "zeros": (b"\0" * 4096, "nothing but zero bytes", "again"),
    "gguf": (b"GGUF\x03" + bytes(60), "a GGUF file", "unquantized checkpoint in the safetensors format"),
    "torch": (_of(lambda file: torch.save({"w": torch.zeros(3)}, file)), "a PyTorch pickle", "save_pretrained"),
    "old torch": (
        _of(lambda file: torch.save({"w": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)),
        "a PyTorch pickle", "save_pretrained",
    ),
    "pickle": (pickle.dumps({"w": [1.0]}), "a PyTorch pickle", "save_pretrained"),
    "numpy": (_of(lambda file: np.savez(file, w=np.zeros(3))), "a NumPy archive", "safetensors.numpy"),
    "zip": (_of(_zip), "a zip archive", "unzip"),
    "tar": (_of(_tar), "a tar archive", "tar xf"),
    "gzip": (gzip.compress(b"x" * 50), "compressed with gzip", "gunzip"),
    "bzip2": (bz2.compress(b"x" * 50), "compressed with bzip2", "bunzip2"),
    "xz": (lzma.compress(b"x" * 50), "compressed with xz", "unxz"),
    "hub's answer": (b"Entry not found", "a text that begins 'Entry not found'", "again"),
    "JSON": (b'{"error": "Repository not found"}', "a text that begins", "again"),
}  # fmt: skip


@pytest.mark.parametrize("what", KINDS)
def test_what_lies_where_tensors_were_expected_is_said_with_what_to_do(tmp_path: Path, what: str) -> None:
    content, name, remedy = KINDS[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(TensorFileError) as caught:
        TensorFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert name in str(caught.value)
    assert "expected a safetensors file" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("what", ["pointer", "page", "gguf", "torch", "gzip"])
def test_what_lies_where_json_was_expected_is_said_too(tmp_path: Path, what: str) -> None:
    (tmp_path / "config.json").write_bytes(KINDS[what][0])
    with pytest.raises(ConfigError, match=KINDS[what][1]):
        read_object(tmp_path / "config.json", ConfigError, "a configuration")


@pytest.mark.parametrize("length", [*range(200, 260), 640, 1152, 2075, 0x0843])
def test_a_sound_file_is_of_no_other_kind_whatever_the_length_of_its_header(tmp_path: Path, length: int) -> None:
    """The first bytes are that length: 0x0280 and 0x0480 are those of a pickle, too."""
    header = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\0")
    assert kind_of(tmp_path / "x") is None
    assert TensorFile(tmp_path / "x").array("x").tolist() == [0]


def test_nothing_is_said_of_what_cannot_be_told(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", {"w": np.zeros(3, np.float32)})
    (tmp_path / "noise").write_bytes(bytes(range(128, 256)))
    for name in ("x", "noise", "gone", "."):
        assert kind_of(tmp_path / name) is None
