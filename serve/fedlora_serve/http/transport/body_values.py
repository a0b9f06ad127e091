"""From the bytes of a body to what a route takes: how many values of JSON there may be, and where they are read.

Two bytes are a list of 56, and while JSON is read in C no other thread runs. A body of some size is read and validated off
the event loop, and each number in it lets others have their turn; of what gives nobody a turn there may be so many.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from json.decoder import py_scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

import numpy as np
from fastapi import HTTPException, Request

MAX_CONTAINERS, MAX_NAMES, MAX_STRINGS = 1 << 16, 1 << 16, 1 << 17
_FEW_NAMES, _FEW_ESCAPES = 1 << 13, 1 << 18  # that are read in C
_AT_ONCE_BYTES = 16 << 10  # that are read on the event loop: within a millisecond

Validate = Callable[[Any], tuple[Any, list[Any]]]  # what a route takes of a value, and what is wrong with it
Elsewhere = Callable[[Callable[[], Any]], Awaitable[Any]]  # does something off the event loop


class InvalidBodyError(HTTPException):
    """A body that is JSON, and not what the route takes: `problems` as pydantic tells them."""

    def __init__(self, problems: Sequence[Any]) -> None:
        super().__init__(400)
        self.problems = problems


class BoundedRequest(Request):
    """A request whose body is read only where it has no more values than that; else HTTPException 400 is raised."""

    validate: Validate | None = None  # None: a route without a body
    elsewhere: Elsewhere

    async def json(self) -> Any:
        """What the body says; of a large one what the route takes of it. Raises HTTPException, JSONDecodeError."""
        content = await self.body()
        if len(content) <= _AT_ONCE_BYTES:
            return json.loads(content, object_pairs_hook=_each_once)
        return await self.elsewhere(partial(_read, content, self.validate))


def _read(content: bytes, validate: Validate | None) -> Any:
    check_values(content)
    text = str(content, json.detect_encoding(content))
    value = _decoder(in_python=content.count(b":") > _FEW_NAMES or content.count(b"\\") > _FEW_ESCAPES).decode(text)
    if validate is None:
        return value
    taken, problems = validate(value)
    if problems:
        raise InvalidBodyError(problems)
    return taken


def _decoder(*, in_python: bool) -> json.JSONDecoder:
    """A function of Python is where a thread lets others go on; in C a million numbers, an object, a text are one piece."""
    decoder = json.JSONDecoder(
        object_pairs_hook=_each_once, parse_int=lambda digits: int(digits), parse_float=lambda digits: float(digits)
    )
    if in_python:
        decoder.parse_string = py_scanstring  # type: ignore[attr-defined]
        decoder.scan_once = py_make_scanner(decoder)  # type: ignore[attr-defined]
    return decoder


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises HTTPException where a name is in it twice: a proxy before us might have read the other value."""
    values = dict(pairs)
    if len(values) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise HTTPException(400, f"{twice!r:.80} is there more than once in one object of the body; send it once")
    return values


def check_values(content: bytes) -> None:
    """Raises HTTPException for JSON of too many lists, objects, names or strings; what stands in a string is none."""
    if _are_few(content, content.count(b'"')) or _are_few(*_without_strings(content)):
        return
    raise HTTPException(
        400,
        f"the body has more than {MAX_CONTAINERS} lists and objects, {MAX_NAMES} names in them, or {MAX_STRINGS} strings; "
        "send it in parts",
    )


def _are_few(content: bytes, quotes: int) -> bool:
    containers = content.count(b"[") + content.count(b"{")
    return containers <= MAX_CONTAINERS and content.count(b":") <= MAX_NAMES and quotes <= 2 * MAX_STRINGS


def _without_strings(content: bytes) -> tuple[bytes, int]:
    """What stands outside of strings, and how many quotes stand around them. Other threads run meanwhile."""
    plain = content.replace(b"\\\\", b"").replace(b'\\"', b"")  # no other escape has a quote
    characters = np.frombuffer(plain, np.uint8)
    quotes = characters == ord('"')
    outside = np.cumsum(quotes, dtype=np.uint8) % 2 == 0  # a sum of 256 is as even as 0
    return characters[outside].tobytes(), int(np.count_nonzero(quotes))
