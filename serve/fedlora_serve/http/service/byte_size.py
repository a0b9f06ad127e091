"""Sizes as people write them: 1GiB, 512 MiB, 100000."""

from __future__ import annotations

import re

from fedlora.errors import ConfigError

_UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def byte_size(text: str | int, where: str) -> int:
    """Bytes. Raises ConfigError, naming `where` it stands."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,3}))? ?([A-Za-z]*)", str(text).strip(), re.ASCII)
    unit = _UNITS.get(match[3].upper()) if match else None
    if match is None or unit is None or type(text) is bool:
        raise ConfigError(f"{where}: expected a size such as 512MiB, 1.5GiB or a number of bytes, got {text!r:.40}")
    return int(float(f"{match[1]}.{match[2] or 0}") * unit)


def shown_size(size_bytes: float) -> str:
    """1.5 GiB of 1610612736."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024 or unit == "GiB":
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    raise AssertionError
