"""How large a model may say that it is, before tables are made of its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LARGEST = {"num_layers": 1024, "head_dim": 4096, "num_heads": 4096, "num_labels": 65536, "max_positions": 1 << 22}
_LARGEST_OTHER = 1 << 24


def whole(value: Any) -> int:
    """The integer that a config.json has for a size. Raises ValueError: "8", 8.5 and true are none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise ValueError(f"a size must be an integer, got {value!r:.40}")
    return value


def number(value: Any) -> float:
    """The number that a config.json has for a constant. Raises TypeError for a text or a truth."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a constant must be a number, got {value!r:.40}")
    return float(value)


def truth(value: Any) -> bool:
    """The truth that a configuration has for a switch. Raises TypeError: "false", 0 and 1 are none."""
    if type(value) is not bool:
        raise TypeError(f"a switch must be true or false, got {value!r:.40}")
    return value


def switch(config: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """What a configuration says of a switch; null is as one that is not there. Raises TypeError."""
    value = config.get(key)
    try:
        return default if value is None else truth(value)
    except TypeError as error:
        raise TypeError(f"{key}: {error}") from None


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise ValueError for a size that no model has: a config.json of a few bytes would fill the memory."""
    for name, size in sizes.items():
        largest = _LARGEST.get(name, _LARGEST_OTHER)
        if size > largest:
            raise ValueError(f"{name} is {size:.3g}; at most {largest} is read")
