"""What an adapter was made of: the adapters, their weights, and the way; kept in the metadata of its safetensors file.

PEFT ignores it, `fedlora inspect` shows it. A part is known by the sha256 of its own adapter_model.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.errors import AdapterError
from fedlora.files.json_text import parse_json

ORIGIN_KEY = "fedlora_origin"
MOST_PARTS, MOST_CHARACTERS = 1024, 200  # that are read: of adapters, and of a name
_MOST_WEIGHT = 1e300  # JSON's integers have no end, and a float does not hold them


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginPart:
    """One of the adapters."""

    name: str  # of its directory, without the way to it
    sha256: str  # of its weights file
    weight: float

    def __str__(self) -> str:
        return f"{self.weight:g} {self.name} ({self.sha256[:16]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How an adapter was made of others."""

    how: str  # in words, with all that it depends on
    parts: tuple[OriginPart, ...]

    def to_metadata(self) -> dict[str, str]:
        return {ORIGIN_KEY: json.dumps(dataclasses.asdict(self), separators=(",", ":"))}


def origin_in(metadata: Mapping[str, str], where: str) -> Origin | None:
    """What `to_metadata` wrote; None where nothing is told. Raises AdapterError for what it did not write."""
    text = metadata.get(ORIGIN_KEY)
    if text is None:
        return None
    try:
        value = parse_json(text)
        parts = tuple(OriginPart(**part) for part in value["parts"])
        origin = Origin(how=value["how"], parts=parts)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise AdapterError(
            f"{where}: {ORIGIN_KEY} is not as fedlora writes it; save the adapter again with PEFT"
        ) from None
    texts = [origin.how, *(part.name for part in parts)]
    is_sound = (
        len(parts) <= MOST_PARTS
        and all(isinstance(each, str) and len(each) <= MOST_CHARACTERS for each in texts)
        and all(isinstance(part.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", part.sha256) for part in parts)
        and all(type(part.weight) in (int, float) and abs(part.weight) < _MOST_WEIGHT for part in parts)
    )
    if not is_sound:
        raise AdapterError(
            f"{where}: {ORIGIN_KEY} holds other values than fedlora writes: expected at most {MOST_PARTS} parts, each "
            "with a name, a sha256 and a finite weight; save the adapter again with PEFT"
        )
    return origin
