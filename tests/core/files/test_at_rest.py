"""What is encrypted where it lies: read as it was written, and refused with one error wherever it is anything else."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fedlora.errors import AtRestError, TensorFileError
from fedlora.files.at_rest import (
    MAGIC,
    PREAMBLE_BYTES,
    copy_plain,
    encrypts,
    key_id_of,
    plain_chunks,
    plain_digest,
    plain_size,
    read_plain,
    wrap,
    write_bytes,
    written,
    written_plain,
)
from fedlora.files.at_rest_key import VARIABLE, WrappingKey
from fedlora.files.streaming_aead import SEGMENT_BYTES
from fedlora.files.tensor_file import TensorFile, write_in_order
from safetensors.numpy import load_file

from tests.tiny.power import power

CONTENT = bytes(n * 7 % 256 for n in range(4000))
LARGE = np.random.default_rng(5).bytes(2 * SEGMENT_BYTES + 12_345)
DAMAGED = "not what was written under this name"


@pytest.fixture
def file(key: WrappingKey, tmp_path: Path) -> Path:
    path = tmp_path / "adapter_model.safetensors"
    write_bytes(path, path.name, CONTENT)
    return path


@pytest.fixture
def large(key: WrappingKey, tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    write_bytes(path, path.name, LARGE)
    return path


def refused(path: Path) -> None:
    """It is no content at all, for any of its readers, and all say the same."""
    for read in (lambda: read_plain(path, 1 << 30), lambda: plain_digest(path)):
        with pytest.raises(AtRestError, match=DAMAGED):
            read()
    with pytest.raises(TensorFileError, match=DAMAGED):
        TensorFile(path)


def test_what_is_read_is_what_was_written_and_none_of_it_lies_there(file: Path) -> None:
    assert read_plain(file, 1 << 20) == CONTENT
    assert file.read_bytes().startswith(MAGIC) and plain_size(file) == len(CONTENT)
    assert plain_digest(file) == hashlib.sha256(CONTENT).hexdigest()
    assert all(CONTENT[n : n + 8] not in file.read_bytes() for n in range(0, len(CONTENT), 8))


def test_large_files_are_read_part_by_part(large: Path, tmp_path: Path) -> None:
    assert [len(part) for part in plain_chunks(large)][1] == SEGMENT_BYTES - 16
    copy_plain(large, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE


def test_without_a_key_files_are_plain_and_plain_ones_are_read_with_one(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_bytes(tmp_path / "plain", "plain", CONTENT)
    assert (tmp_path / "plain").read_bytes() == CONTENT and not encrypts()
    request.getfixturevalue("key")
    assert encrypts() and read_plain(tmp_path / "plain", 1 << 20) == CONTENT and key_id_of(tmp_path / "plain") == ""


def test_tensors_are_read_from_memory_as_from_a_plain_file(key: WrappingKey, tmp_path: Path) -> None:
    tensors = {name: ("F32", np.arange(n, dtype=np.float32).reshape(shape)) for name, n, shape in (
        ("a", 12, (3, 4)), ("empty", 0, (0, 4)), ("large", 600_000, (600, 1000))
    )}  # fmt: skip
    path = tmp_path / "x.safetensors"
    write_in_order(path, tensors, {"format": "pt"}, at_rest=path.name)  # type: ignore[arg-type]
    found = TensorFile(path)
    assert found.metadata == {"format": "pt"}
    assert all(np.array_equal(found.float32(name), array) for name, (_, array) in tensors.items())
    copy_plain(path, tmp_path / "plain.safetensors")
    assert load_file(tmp_path / "plain.safetensors").keys() == tensors.keys()
    with written_plain():
        write_in_order(tmp_path / "y", tensors, {"format": "pt"}, at_rest="y")  # type: ignore[arg-type]
    assert (tmp_path / "y").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_what_no_name_is_given_for_is_never_encrypted(key: WrappingKey, tmp_path: Path) -> None:
    write_in_order(tmp_path / "base", {"a": ("F32", np.ones(3, np.float32))})
    assert load_file(tmp_path / "base")["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("position", [*range(0, PREAMBLE_BYTES + 41, 3), 150, 1000, 2000, 4000, -17, -1])
def test_a_flipped_bit_anywhere_is_found(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << (position % 8)
    file.write_bytes(content)
    if 0 <= position < len(MAGIC):  # then it is no such file, and nobody reads a plain one as an adapter
        with pytest.raises(TensorFileError):
            TensorFile(file)
    elif 0 <= position < len(MAGIC) + 8:
        with pytest.raises(AtRestError, match="under key"):
            read_plain(file, 1 << 20)
    else:
        refused(file)


def test_a_file_cut_off_anywhere_is_refused(large: Path) -> None:
    content = large.read_bytes()
    edges = [PREAMBLE_BYTES + n * SEGMENT_BYTES for n in range(3)]
    cuts = {edge + beside for edge in edges for beside in (-1, 0, 1, 15, 16, 17)} | {
        len(MAGIC),
        len(MAGIC) + 4,
        len(content) - 1,
    }
    for cut in sorted(cuts):
        large.write_bytes(content[:cut])
        refused(large)
    large.write_bytes(content + b"\0")
    refused(large)
    large.write_bytes(content)
    assert read_plain(large, 1 << 30) == LARGE


def test_segments_of_two_files_do_not_mix(large: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / large.name
    other.parent.mkdir()
    write_bytes(other, other.name, LARGE)
    mine, its = large.read_bytes(), other.read_bytes()
    for begin, end in (
        (0, PREAMBLE_BYTES),
        (PREAMBLE_BYTES, PREAMBLE_BYTES + SEGMENT_BYTES),
        (PREAMBLE_BYTES + SEGMENT_BYTES, PREAMBLE_BYTES + 2 * SEGMENT_BYTES),
        (PREAMBLE_BYTES + 2 * SEGMENT_BYTES, len(mine)),
    ):
        large.write_bytes(mine[:begin] + its[begin:end] + mine[end:])
        refused(large)
    large.write_bytes(its)
    assert read_plain(large, 1 << 30) == LARGE  # a whole file of the same name is what it is: records tell them apart


def test_a_renamed_file_is_refused_and_a_moved_one_is_not(file: Path) -> None:
    refused(Path(shutil.copy(file, file.with_name("kept-1-round-0001.safetensors"))))
    folder = file.parent / "folder"
    folder.mkdir()
    assert read_plain(Path(shutil.copy(file, folder / file.name)), 1 << 20) == CONTENT


def test_the_length_is_bound_too(key: WrappingKey, tmp_path: Path) -> None:
    with pytest.raises(AssertionError), written(tmp_path / "x", "x", 5) as stream:
        stream.write(b"1234")


def test_another_key_and_none_are_told_by_their_ids(
    file: Path, other_key: WrappingKey, key: WrappingKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key_id_of(file) == key.id.hex() != other_key.id.hex()
    monkeypatch.setenv("OTHER", other_key.key.hex())
    monkeypatch.setenv(VARIABLE, "env:OTHER")
    with pytest.raises(
        AtRestError, match=f"under key {key.id.hex()}, at_rest_key is {other_key.id.hex()}; give the key"
    ):
        read_plain(file, 1 << 20)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(TensorFileError, match=f"under key {key.id.hex()}, and there is none; expected its source in"):
        TensorFile(file)


def test_no_more_is_read_than_is_asked_for(file: Path) -> None:
    with pytest.raises(OSError, match="more than 3999 bytes"):
        read_plain(file, 3999)
    assert len(read_plain(file, 4000)) == 4000


def test_a_plain_file_is_encrypted_where_it_lies(
    key: WrappingKey, tmp_path: Path, without_key: Callable[[], None]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(LARGE)
    path.chmod(0o640)
    wrap(path)
    assert (
        key_id_of(path) == key.id.hex() and read_plain(path, 1 << 30) == LARGE and path.stat().st_mode & 0o777 == 0o640
    )
    there = path.read_bytes()
    wrap(path)  # it is already
    assert path.read_bytes() == there
    without_key()
    (tmp_path / "y").write_bytes(CONTENT)
    wrap(tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == CONTENT


def test_whenever_the_power_is_cut_the_file_is_whole_and_either_one(
    key: WrappingKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "x"
    path.write_bytes(CONTENT)
    with power(folder) as counted:
        wrap(path)
    assert counted.writes >= 3
    seen = set()
    for cut_at in range(counted.writes):
        path.write_bytes(CONTENT)
        with power(folder, cut_at):
            wrap(path)
        assert read_plain(path, 1 << 20) == CONTENT
        seen.add(key_id_of(path))
        wrap(path)
        assert key_id_of(path) == key.id.hex()
    assert "" in seen
