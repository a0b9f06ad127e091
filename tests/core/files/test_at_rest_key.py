"""Where the key of files at rest comes from, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from fedlora.errors import ConfigError
from fedlora.files import at_rest, at_rest_key
from fedlora.files.at_rest import current_key, use_key
from fedlora.files.at_rest_key import VARIABLE, WrappingKey, placed_source, read_key, write_new_key

HEX = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(at_rest, "_keys", {})


def test_a_new_key_is_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    made = write_new_key(tmp_path / "k")
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert read_key("file:k", tmp_path) == made
    with pytest.raises(ConfigError, match="exists already"):
        write_new_key(tmp_path / "k")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    write_new_key(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    if mode == 0o640:  # root's own may be a group's
        assert read_key(f"file:{tmp_path / 'k'}") if (tmp_path / "k").stat().st_uid == 0 else True
        return
    with pytest.raises(ConfigError, match="others may read or write it") as refusal:
        read_key(f"file:{tmp_path / 'k'}")
    assert (tmp_path / "k").read_text().strip() not in str(refusal.value)


def test_the_environment_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT_REST", HEX)
    assert read_key("env:AT_REST").key == bytes.fromhex(HEX)
    with pytest.raises(ConfigError, match="the environment has no AT_REST2"):
        read_key("env:AT_REST2")


@pytest.mark.parametrize("content", [b"", b"12", HEX.encode()[:-1], HEX.encode() + b"00", b"g" * 64, b"\0" * 32])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k").write_bytes(content)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(ConfigError, match="expected 64 hexadecimal digits"):
        read_key("file:k", tmp_path)


@pytest.mark.parametrize("source", ["key", "file:", "hsm:1", ":x", "FILE:x"])
def test_a_source_of_no_kind_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="expected file:PATH, env:VARIABLE or keyring:NAME"):
        read_key(source)


def test_a_key_that_is_not_there_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="cannot be read: No such file or directory; make one with: fedlora key at-rest"
    ):
        read_key("file:k", tmp_path)


def test_relative_paths_count_from_a_folder(tmp_path: Path) -> None:
    assert placed_source("file:a/../k", tmp_path) == f"file:{tmp_path / 'k'}"
    assert placed_source("file:/k", tmp_path) == "file:/k"
    assert placed_source("env:K", tmp_path) == "env:K" and placed_source("", tmp_path) == ""


def test_the_one_that_is_used_is_that_of_children_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_key() is None
    made = write_new_key(tmp_path / "k")
    use_key("file:k", tmp_path)
    assert current_key() == made
    assert os.environ[VARIABLE] == f"file:{tmp_path / 'k'}"
    use_key("")  # that of the environment stays, looked at once more
    assert current_key() == made
    with pytest.raises(ConfigError, match="cannot be read"):
        use_key("file:none", tmp_path)


def test_it_is_never_shown() -> None:
    assert "01234567" not in repr(WrappingKey(bytes.fromhex(HEX)))


def test_wrapping_is_that_of_rfc_3394() -> None:
    """Section 4.6: 256 bits of key data with a 256-bit key."""
    key = WrappingKey(bytes.fromhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"))
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = bytes.fromhex("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
    assert key.wrap(data) == wrapped and key.unwrap(wrapped) == data == aes_key_unwrap(key.key, wrapped)
    with pytest.raises(ValueError, match="not wrapped"):
        key.unwrap(wrapped[:-1] + b"\0")
    assert len(wrapped) == at_rest_key.WRAPPED_BYTES
