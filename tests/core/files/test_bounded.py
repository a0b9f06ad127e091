"""A file is read whole within its bound, and nothing but a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fedlora.files.bounded import read_bounded


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_within_the_bound_is_read(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "file", 100) == read_bounded(tmp_path / "link", 100) == b"x" * size


@pytest.mark.parametrize("size", [101, 1 << 40])
def test_a_larger_one_is_not(tmp_path: Path, size: int) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)  # with a hole: it takes no room on the disk
    with pytest.raises(OSError, match="more than 100 bytes") as error:
        read_bounded(tmp_path / "file", 100)
    assert error.value.errno == errno.EFBIG


def test_what_grows_behind_its_size_is_bounded_too() -> None:
    # The kernel tells 0 bytes of these files, and gives more.
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_bounded(Path("/proc/self/maps"), 10)


def test_a_pipe_a_device_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(OSError, match="not a plain file"):
            read_bounded(tmp_path / name, 100)
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 100)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "nothing", 100)
