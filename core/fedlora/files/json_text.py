"""JSON that a stranger wrote, as a value: never one that takes many times the memory of its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_SMALL, _PER_CONTAINER = 1 << 20, 8  # bytes or characters; a list takes 64 bytes of memory


def parse_json(
    text: str | bytes,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_int: Callable[[str], int | float] | None = None,
) -> Any:
    """The value of a JSON text. Raises ValueError or RecursionError for what is none.

    Also where lists and objects alone would take many times the memory of their text: `[],` and a comma are three bytes.
    """
    if len(text) > _SMALL:
        found = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
        if found > (most := len(text) // _PER_CONTAINER):
            raise ValueError(f"{found} lists and objects in {len(text)} characters; at most {most} are read")
    return json.loads(text, object_pairs_hook=object_pairs_hook, parse_int=parse_int)
