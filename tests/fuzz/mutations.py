"""Sound files, damaged at random: bytes and JSON values that a careless or hostile writer might leave."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

# Numbers at the edges of what readers compute with, and values of every other kind.
_NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    4095,
    4096,
    4097,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**48,
    2**63,
    2**64,
    10**30,
]
_ODD: list[Any] = [
    None, True, False, 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), "", "a", "\0", "\ud800", "é" * 3, "..",
    "/", "a" * 10_000, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, "(((((a+)+)+)+)+)+$", "0" * 64, "f" * 64,
]  # fmt: skip


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """`data` with one or a few bits, bytes, numbers or runs changed, taken away, put in or moved."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        place, length = chance.randrange(len(out)), chance.choice((1, 2, 4, 8, 64))
        kind = chance.randrange(8)
        if kind == 0:
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[place] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, ord('"'), ord("{"), ord("0"), ord("9"), chance.randrange(256))
            )
        elif kind == 2:  # a number of 32 bits in its place
            place -= place % 4
            number = chance.choice((0, 1, 4, 8, len(out), 2**31 - 1, 2**31, 2**32 - 1, chance.randrange(len(out))))
            out[place : place + 4] = struct.pack("<I", number)
        elif kind == 3:
            del out[place : place + length]
        elif kind == 4:
            out[place:place] = chance.randbytes(length)
        elif kind == 5:
            del out[place:]
        elif kind == 6:  # one place looks like another
            other = chance.randrange(len(out))
            out[place : place + length] = out[other : other + length]
        else:  # a number of 64 bits
            place -= place % 8
            out[place : place + 8] = struct.pack(
                "<q", chance.choice((0, -1, 1, 2**62, -(2**63), chance.randrange(1 << 40)))
            )
    return bytes(out)


def damaged_json(value: Any, chance: random.Random) -> Any:
    """`value` with something in it replaced, taken away, doubled or renamed; it is not changed itself."""
    damaged = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = list(_places(damaged))
        if not places:
            return copy.deepcopy(chance.choice(_ODD))
        holder, key = chance.choice(places)
        kind = chance.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice([*map(str, holder), "x", "__metadata__", "\ud800", "a.b", ""])] = holder.pop(key)
        elif kind == 2:
            other, other_key = chance.choice(places)
            holder[key] = json.loads(json.dumps(other.get(other_key) if isinstance(other, dict) else None))
        elif kind == 3:
            holder[key] = chance.choice(_NUMBERS)
        elif kind == 4 and isinstance(holder[key], str) and holder[key]:
            letters = list(holder[key])
            letters[chance.randrange(len(letters))] = chance.choice("0f.*/\\\0\ud800é(")
            holder[key] = "".join(letters)
        else:
            holder[key] = copy.deepcopy(chance.choice(_ODD))  # it may be damaged itself
    return damaged


def damaged_text(value: Any, chance: random.Random) -> bytes:
    """A JSON file, damaged in its values or in its letters."""
    if chance.random() < 0.7:
        text = json.dumps(damaged_json(value, chance))
        return text.encode("utf-8") if chance.random() < 0.9 else damaged_bytes(text.encode("utf-8"), chance)
    return damaged_bytes(json.dumps(value).encode("utf-8"), chance)


def _places(value: Any) -> Any:
    """Every (object or list, key or index) below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)
