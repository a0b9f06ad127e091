"""The values of a record: text, and what is said of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.errors import DataError


def text_field(record: Mapping[str, Any], name: str, where: str = "") -> str:
    """The text of a field. Raises DataError for one that is missing, or no text."""
    prefix = f"{where}: " if where else ""
    if name not in record:
        raise DataError(f"{prefix}{name} is missing; expected an object with role and content")
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{prefix}{name} must be a string, got {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise DataError(f"{prefix}{name} is not text: {half} is half of a character; write the whole one") from None
    return value


def kind(value: object) -> str:
    """A JSON value's kind, and its beginning where it is short enough to tell."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return f"{value!r:.40}"
        case str():
            return f"the string {value[:40]!r}"
        case list():
            return f"a list of {len(value)}"
        case _:
            return "an object"
