"""A key of the kernel's keyring, put there by the kernel's own call."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator

import pytest
from fedlora.errors import ConfigError
from fedlora.files.at_rest_key import read_key
from fedlora.files.kernel_keyring import read_keyring

_ADD_KEY = {"x86_64": 248, "aarch64": 217, "riscv64": 217}
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
_PROCESS, _UNLINK = -2, 9  # KEY_SPEC_PROCESS_KEYRING, KEYCTL_UNLINK


def add(name: str, payload: bytes) -> int:
    number = _ADD_KEY.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None:
        pytest.skip("no kernel keyring of a known machine")
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t(len(payload))
    serial: int = libc.syscall(number, b"user", name.encode(), payload, size, ctypes.c_int(_PROCESS))
    if serial < 0:
        pytest.skip(f"this kernel or container lets nobody add keys: {os.strerror(ctypes.get_errno())}")
    return serial


@pytest.fixture
def name() -> Iterator[str]:
    name = f"fedlora-test-{os.getpid()}"
    yield name
    serial = add(name, b"x")
    ctypes.CDLL(None).syscall(_KEYCTL[platform.machine()], _UNLINK, ctypes.c_int(serial), ctypes.c_int(_PROCESS))


@pytest.mark.parametrize(
    "payload", [bytes(range(32)), bytes(range(32)).hex().encode(), bytes(range(32)).hex().encode() + b"\n"]
)
def test_a_key_of_the_keyring_is_read(name: str, payload: bytes) -> None:
    add(name, payload)
    assert read_keyring(name, 256) == payload
    assert read_key(f"keyring:{name}").key == bytes(range(32))


def test_one_that_is_too_large_or_not_there_is_refused(name: str) -> None:
    add(name, b"x" * 300)
    with pytest.raises(ConfigError, match="more than 256 bytes"):
        read_key(f"keyring:{name}")
    with pytest.raises(ConfigError, match="cannot be read: Required key not available"):
        read_key("keyring:fedlora-nobody-has-this")


def test_another_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(ConfigError, match="64-bit Linux alone, this is vax"):
        read_key("keyring:x")
