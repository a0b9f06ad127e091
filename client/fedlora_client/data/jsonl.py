"""Training examples in JSON Lines: one object a line.

    {"text": "a document"}
    {"prompt": "2 + 2 =", "completion": " 4"}
    {"text": "a review", "label": "good"}
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}

Other fields are ignored, and so are fields that are null and blank lines.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from fedlora.data.examples import Chat, ChatMessage, Completion, Example, Labelled, TextRecord
from fedlora.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORMS = (("text",), ("prompt", "completion"), ("messages",))
_EXPECTED = "text, or prompt and completion, or messages"


def read_jsonl(path: Path) -> tuple[Example, ...]:
    """Every example of a file, compressed where its name ends in .gz. Raises DataError with the file and the line."""
    examples: list[Example] = []
    try:
        with _opened(path) as file:
            for number, line in _lines(file, path):
                try:
                    examples.append(parse_example(line))
                except DataError as error:
                    raise DataError(f"{path}: line {number}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; copy the file again, or name another place") from None
    if not examples:
        raise DataError(f"{path}: no example in it; expected a JSON object a line, with {_EXPECTED}")
    return tuple(examples)


def parse_example(line: str) -> Example:
    """The example of one line. Raises DataError."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}; expected one JSON object a line") from None
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object with {_EXPECTED}, got {_kind(record)}")
    given = {name: value for name, value in record.items() if value is not None}
    match [form for form in _FORMS if given.keys() >= set(form)]:
        case [("text",)] if "label" in given:
            return Labelled(_text(given, "text"), given["label"], has_pair="text_pair" in given)
        case [("text",)]:
            return TextRecord(_text(given, "text"))
        case [("prompt", "completion")]:
            return Completion(_text(given, "prompt"), _text(given, "completion"))
        case [("messages",)]:
            return Chat(_messages(given["messages"]))
        case []:
            fields = ", ".join(name if name in given else f"{name} (null)" for name in record) or "none"
            raise DataError(f"expected the fields {_EXPECTED}, got {fields:.200}; rename the file's fields")
        case several:
            found = " and ".join("/".join(form) for form in several)
            raise DataError(f"expected only one of {_EXPECTED}, got {found}; remove what is not to be learned")


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is not blank."""
    begin = 0
    for number, line in enumerate(file, 1):
        try:
            text = line.removeprefix(_BYTE_ORDER_MARK).decode() if number == 1 else line.decode()
        except UnicodeDecodeError as error:
            place = begin + error.start + len(line) - len(error.object)
            raise DataError(
                f"{path}: line {number}: not UTF-8 text: byte {place} is wrong; convert the file to UTF-8"
            ) from None
        begin += len(line)
        if text.strip():
            yield number, text


def _messages(value: object) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list):
        raise DataError(f"messages must be a list of objects with role and content, got {_kind(value)}")
    messages = []
    for number, message in enumerate(value, 1):
        where = f"message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{where}: expected an object with role and content, got {_kind(message)}")
        messages.append(ChatMessage(_text(message, "role", where), _text(message, "content", where)))
    return tuple(messages)


def _text(record: Mapping[str, Any], name: str, where: str = "") -> str:
    prefix = f"{where}: " if where else ""
    if name not in record:
        raise DataError(f"{prefix}{name} is missing; expected an object with role and content")
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{prefix}{name} must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise DataError(f"{prefix}{name} is not text: {half} is half of a character; write the whole one") from None
    return value


def _kind(value: object) -> str:
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
