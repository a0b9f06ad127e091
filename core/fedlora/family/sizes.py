"""How large a model may say that it is, before tables are made of its sizes."""

from __future__ import annotations

from collections.abc import Mapping

_LARGEST = {"num_layers": 1024, "head_dim": 4096, "num_heads": 4096, "num_labels": 65536}
_LARGEST_OTHER = 1 << 24


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise ValueError for a size that no model has: a config.json of a few bytes would fill the memory."""
    for name, size in sizes.items():
        largest = _LARGEST.get(name, _LARGEST_OTHER)
        if size > largest:
            raise ValueError(f"{name} is {size:.3g}; at most {largest} is read")
