"""Dictionaries of tensors that the safetensors library writes, read by our own reader."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fedlora.files.tensor_dictionary import write_tensors
from fedlora.files.tensor_file import TensorFile

TENSORS = {
    "b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a": np.array([1.5, -2.0], np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "every other": np.arange(8, dtype=np.float32)[::2],
}


def test_what_is_written_is_read_back_with_its_metadata(tmp_path: Path) -> None:
    metadata = {"format": "pt", "note": "é"}
    write_tensors(tmp_path / "x", TENSORS, metadata)
    file = TensorFile(tmp_path / "x")
    assert file.metadata == metadata
    assert file.entries.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert np.array_equal(file.float32(name), expected)
        assert file.entries[name].shape == expected.shape


def test_bytes_are_the_same_each_time_and_whatever_the_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one", TENSORS)
    write_tensors(tmp_path / "two", dict(reversed(TENSORS.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_file_is_for_whoever_its_directory_is_for(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x", TENSORS)
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process grows beyond 64 KiB."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_file_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(OSError, match="File too large") as caught:
        write_tensors(tmp_path / "x", {"a": np.zeros(1 << 16, np.float32)})
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "x").read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_folder_that_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_tensors(tmp_path / "nowhere" / "x", TENSORS)
    assert caught.value.filename == str(tmp_path / "nowhere" / "x")
