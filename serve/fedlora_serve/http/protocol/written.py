"""An answer as JSON, written piece by piece: between two of them other threads have their turn."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import to_json

_PIECE = 1024  # numbers, strings or small objects that are written at once


def written(answer: BaseModel) -> bytes:
    """The same as `answer.model_dump_json()`, however large it is. Not for the event loop.

    A list in it may be an iterator (`model_construct`): what that gives is written and let go, one by one.
    """
    return b"".join(_parts(answer))


def _parts(value: object) -> Iterator[bytes]:
    match value:
        case BaseModel() if any(map(_is_large, value.__dict__.values())):
            before = b"{"
            for name in type(value).model_fields:
                yield before + to_json(name) + b":"
                yield from _parts(getattr(value, name))
                before = b","
            yield b"}"
        case Iterator():
            before = b"["
            for one in value:
                yield before
                yield from _parts(one)
                before = b","
            yield b"[]" if before == b"[" else b"]"
        case list() if _are_models(value):
            yield from _parts(iter(value))
        case list() if _is_large(value):
            step = _PIECE // max(1, len(value[0])) or 1 if isinstance(value[0], dict) else _PIECE
            for begin in range(0, len(value), step):
                yield b"," if begin else b"["
                yield to_json(value[begin : begin + step])[1:-1]
            yield b"]"
        case _:
            yield to_json(value)


def _is_large(value: object) -> bool:
    """Whether it may have to be written in pieces."""
    if isinstance(value, list):
        return len(value) > _PIECE or _are_models(value) or (bool(value) and isinstance(value[0], dict))
    return isinstance(value, BaseModel | Iterator)


def _are_models(value: list[object]) -> bool:
    return bool(value) and isinstance(value[0], BaseModel)
