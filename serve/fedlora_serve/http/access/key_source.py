"""Where a key is kept: in a file, in the environment, or, without the key itself, as its sha256."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError
from fedlora.files.ownership import read_secret

from fedlora_serve.http.access.keys import key_digest

KEY_SOURCES = ("key", "key_sha256", "key_file", "key_env")

_MAX_FILE_BYTES = 4096
_KEY = re.compile(r"[!-~]{16,512}")  # printable ASCII without spaces, as a header takes it
_NO_KEYS = (key_digest(""), key_digest("\n"))  # what a shell computes of a variable that is not set
_MAKE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def digest_from(source: Mapping[str, Any], folder: Path, where: str, environment: Mapping[str, str]) -> bytes:
    """The sha256 of a key, from the one entry of `source`: {one of KEY_SOURCES: value}. Raises ConfigError.

    A path counts from `folder`. No message holds a key.
    """
    if len(source) != 1 or not all(isinstance(value, str) for value in source.values()):
        raise ConfigError(
            f"{where}: expected one of {', '.join(KEY_SOURCES)}, a text; got {', '.join(source) or 'none'}"
        )
    [(kind, value)] = source.items()
    if kind == "key_sha256":
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ConfigError(f"{where}: key_sha256 must be the 64 hexadecimal digits of the key's sha256")
        if bytes.fromhex(value) in _NO_KEYS:
            raise ConfigError(f"{where}: key_sha256 is of an empty text; compute it again, of the key itself")
        return bytes.fromhex(value)
    if kind == "key_env":
        key = environment.get(value, "")
        if not key:
            raise ConfigError(f"{where}: the environment has no {value}; set it to the key")
    elif kind == "key_file":
        key = _file_text(folder / value, where)
    else:
        key = value
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{where}: a key is 16 to 512 printable characters without spaces; {_MAKE}")
    return key_digest(key)


def _file_text(path: Path, where: str) -> str:
    try:
        return read_secret(path, _MAX_FILE_BYTES, where).decode("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise ConfigError(f"{where}: {path}: cannot be read: {reason}; expected the key in it") from None
