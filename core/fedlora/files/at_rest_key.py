"""The key that wraps the data keys of files at rest, and where it comes from: a file, the environment, the keyring.

    file:PATH        64 hexadecimal digits, in a file for its owner alone
    env:VARIABLE     64 hexadecimal digits
    keyring:NAME     a key of type `user` in the kernel's keyring: 64 hexadecimal digits, or the 32 bytes

Wrapping is AES Key Wrap (RFC 3394). HPKE, which `cryptography` has too (Suite, MLKEM768_X25519), seals for somebody else
who holds a private key; here whoever writes a file reads it again, so its private half would lie beside the public one.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from fedlora.errors import AtRestError, ConfigError, MissingExtraError
from fedlora.files.atomic import whole_file
from fedlora.files.kernel_keyring import read_keyring
from fedlora.files.ownership import read_secret

KEY_BYTES, ID_BYTES, WRAPPED_BYTES = 32, 8, 40
VARIABLE = "FEDLORA_AT_REST_KEY"  # names the source where nothing else does
_MAX_BYTES = 256
_EXPECTED = "expected file:PATH, env:VARIABLE or keyring:NAME"
_MAKE = "make one with: fedlora key at-rest FILE"


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """256 bits that wrap data keys, known by an id that tells nothing of them."""

    key: bytes = field(repr=False)

    @property
    def id(self) -> bytes:
        """HKDF-SHA256 of the key, 8 bytes."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), ID_BYTES, None, b"fedlora at rest, id of a key").derive(self.key)

    def wrap(self, data_key: bytes) -> bytes:
        from cryptography.hazmat.primitives.keywrap import aes_key_wrap

        return aes_key_wrap(self.key, data_key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Raises ValueError for what this key did not wrap."""
        from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

        try:
            return aes_key_unwrap(self.key, wrapped)
        except InvalidUnwrap:
            raise ValueError("not wrapped by this key") from None


def read_key(source: str, folder: Path = Path()) -> WrappingKey:
    """The key of a source; relative paths count from `folder`. Raises ConfigError, which holds nothing of the key."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"at_rest_key {source:.80}: encryption needs the package cryptography; install it with: pip install "
            "'fedlora[serve]'"
        ) from None
    kind, _, place = source.partition(":")
    if kind not in ("file", "env", "keyring") or not place:
        raise ConfigError(f"at_rest_key: {source!r:.80}; {_EXPECTED}")
    where = f"at_rest_key {source:.200}"
    try:
        if kind == "file":
            content = read_secret(folder / Path(place).expanduser(), _MAX_BYTES, "at_rest_key")
        elif kind == "env":
            content = os.environ[place].encode()
        else:
            content = read_keyring(place, _MAX_BYTES)
    except KeyError:
        raise ConfigError(f"{where}: the environment has no {place}; expected 64 hexadecimal digits there") from None
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where}: cannot be read: {told}; {_MAKE}") from None
    if kind == "keyring" and len(content) == KEY_BYTES:
        return WrappingKey(content)
    text = content.strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        raise ConfigError(f"{where}: {len(text)} bytes; expected 64 hexadecimal digits: {_MAKE}")
    return WrappingKey(bytes.fromhex(text.decode()))


def placed_source(source: str, folder: Path) -> str:
    """The same source from whatever folder it is read: a relative path counts from `folder`."""
    kind, _, place = source.partition(":")
    if kind != "file" or not place:
        return source
    try:
        return f"file:{os.path.normpath(folder.absolute() / Path(place).expanduser())}"
    except RuntimeError as error:
        raise ConfigError(f"at_rest_key: {source:.80}: {error}; give the whole path") from None


def write_new_key(path: Path) -> WrappingKey:
    """Make a key in a file that is not there yet, for its owner alone."""
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already; name another file")
    key = WrappingKey(secrets.token_bytes(KEY_BYTES))
    with whole_file(path, is_private=True) as aside:
        aside.write_text(key.key.hex() + "\n", encoding="ascii")
    return key


def check_id(key: WrappingKey | None, wanted: bytes, where: str) -> WrappingKey:
    """The key of a file that is wrapped by that of id `wanted`. Raises AtRestError where there is none, or another."""
    if key is None:
        raise AtRestError(
            f"{where}: encrypted at rest under key {wanted.hex()}, and there is none; expected its source in "
            f"at_rest_key or {VARIABLE}"
        )
    if key.id != wanted:
        raise AtRestError(
            f"{where}: encrypted at rest under key {wanted.hex()}, at_rest_key is {key.id.hex()}; give the key that it was "
            "written under"
        )
    return key
