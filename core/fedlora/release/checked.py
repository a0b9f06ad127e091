"""Values of a signed JSON document, looked at one by one: a signature says whose it is, not that it makes sense."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

from fedlora.errors import ReleaseError

MAX_NUMBER = 1 << 53  # what every reader of JSON takes whole


def object_of(value: object, where: str, names: Set[str] | None = None) -> dict[str, Any]:
    """A JSON object, with just these names where they are given. Raises ReleaseError."""
    if not isinstance(value, dict):
        raise ReleaseError(f"{where}: {type(value).__name__}; expected an object")
    if names is not None and value.keys() != names:
        wrong = sorted(value.keys() ^ names)
        raise ReleaseError(
            f"{where}: {', '.join(map(ascii, wrong))[:200]} missing or unknown; expected {len(names)} fields"
        )
    return dict(value)


def is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < MAX_NUMBER


def is_number(value: object) -> bool:
    return (type(value) is int and abs(value) < MAX_NUMBER) or (type(value) is float and math.isfinite(value))


def is_text(value: object, most: int = 400) -> bool:
    """One to so many printable characters."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()
