"""JSON in its one form (RFC 8785): the same value is the same bytes, wherever it is written, so its digest names it."""

from __future__ import annotations

import json
from typing import Any

from fedlora.errors import IdentityError
from fedlora.files.json_text import parse_json

_FIRST_FLOAT, _MOST_DIGITS = 2**53, 17  # digits, and a sign
_DEEPEST = 8  # of what Python's own writer is asked for
_WRITER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical(value: object) -> bytes:
    """The bytes of a JSON value: keys in order, no spaces, numbers as ECMAScript writes them.

    Raises IdentityError for what has no such form: a number that is not finite, an integer beyond 2**53, a key that is no
    text, half of a surrogate pair, something that is no JSON.
    """
    import rfc8785

    try:
        if _is_plain(value, _DEEPEST):
            return _WRITER.encode(value).encode("utf-8")
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # it takes JSON's own types, and raises for others
    except (rfc8785.CanonicalizationError, RecursionError, ValueError) as error:
        raise IdentityError(
            f"no JSON of one form: {error}; expected finite numbers, texts, lists and objects"
        ) from None


def _is_plain(value: object, depth: int) -> bool:
    """Whether Python's own writer, in C, gives the same bytes: no floats, and keys whose order is that of ASCII."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return -_FIRST_FLOAT < value < _FIRST_FLOAT  # type: ignore[operator]
    if not depth:
        return False
    if kind is dict:
        return all(
            type(key) is str and key.isascii() and _is_plain(each, depth - 1)
            for key, each in value.items()  # type: ignore[attr-defined]
        )
    return kind is list and all(_is_plain(each, depth - 1) for each in value)  # type: ignore[attr-defined]


def read_canonical(content: bytes, where: str) -> Any:
    """The value of JSON that stands in its one form. Raises IdentityError, which begins with `where`, for any other."""
    try:
        value = parse_json(content, parse_int=_number)
        is_same = canonical(value) == content
    except (ValueError, RecursionError, IdentityError) as error:
        raise IdentityError(f"{where}: {error}; expected JSON in the form of RFC 8785") from None
    if not is_same:
        raise IdentityError(f"{where}: JSON in another form than RFC 8785's; expected the bytes as they were signed")
    return value


def _number(text: str) -> int | float:
    """A whole number as ECMAScript has it: beyond 2**53 a float, which may be written without a point."""
    value = int(text) if len(text) <= _MOST_DIGITS else 0
    return value if abs(value) < _FIRST_FLOAT and len(text) <= _MOST_DIGITS else float(text)
