"""Records in JSON: an object a line, or a list of objects; which of them, the file itself says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader, BytesIO
from pathlib import Path
from shlex import quote
from typing import Any

from fedlora.config.sections import FieldNames
from fedlora.data.examples import Example
from fedlora.errors import DataError, NotRecordsError
from fedlora.files.json_text import parse_json

from fedlora_client.records.byte_source import BYTE_ORDER_MARK, MAX_LINE_BYTES, opened, read_rest
from fedlora_client.records.json_values import kind
from fedlora_client.records.record_forms import EXPECTED, is_known, parse_record
from fedlora_client.records.records import Records, collected

Place = tuple[str, Mapping[str, Any]]  # where a record stands, and the record
_A_LINE = "one JSON object a line"
_TO_RECORDS = (
    'python -c "import sys, json, pandas; pandas.DataFrame(json.load(open(sys.argv[1]))).to_json(sys.argv[2], '
    "orient='records', lines=True)\" {path} {jsonl}"
)


def read_jsonl(path: Path) -> tuple[Example, ...]:
    """Every example of a file. Raises DataError with the file and the line."""
    return read_json(path).examples


def read_json(path: Path, fields: FieldNames | None = None, *, is_document: bool = False) -> Records:
    """The records of a file, which with `is_document` is rather one JSON value. Raises DataError with the place."""
    with opened(path) as file:
        fields = fields or FieldNames()
        return collected(path, _records(file, path, is_document, fields), fields)


def parse_example(line: str) -> Example | None:
    """The example of one line; None for one that is not to be learned. Raises DataError."""
    return parse_record(_object(_value(line))).example


def _records(file: BufferedReader[Any], path: Path, is_document: bool, fields: FieldNames) -> Iterator[Place]:
    if is_document or _begins_with_a_list(file):
        data = read_rest(file, path)
        try:
            value = parse_json(data.removeprefix(BYTE_ORDER_MARK))
        except (ValueError, RecursionError) as error:
            if data.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
                raise DataError(f"{path}: not JSON: {error}; expected one list of objects, or {_A_LINE}") from None
            lines: Iterable[bytes] = BytesIO(data)
        else:
            yield from _listed(value, path, fields)
            return
    else:
        lines = _bounded_lines(file, path)
    for number, line in _lines(lines, path):
        try:
            record = _object(_value(line))
        except DataError as error:
            raise DataError(f"{path}: line {number}: {error}") from None
        yield f"line {number}", record


def _begins_with_a_list(file: BufferedReader[Any]) -> bool:
    return file.peek(1).removeprefix(BYTE_ORDER_MARK).lstrip(b" \t\r\n").startswith(b"[")


def _listed(value: object, path: Path, fields: FieldNames) -> Iterator[Place]:
    """The records of a whole file: those of a list, of an object that has them in its only list, or the object itself."""
    if isinstance(value, dict) and _has_columns(value):
        raise NotRecordsError(
            f"{path}: columns, not records: each field has the values of all records; write an object for each: "
            + _TO_RECORDS.replace("{path}", quote(str(path))).replace("{jsonl}", quote(str(path.with_suffix(".jsonl"))))
        )
    if isinstance(value, dict) and not is_known(list(value), fields):
        lists = [name for name, part in value.items() if isinstance(part, list)]
        if lists not in (["data"], ["train"]) and not (lists and len(value) == 1):
            raise NotRecordsError(
                f"{path}: an object with {', '.join(value)!s:.200}; expected a list of objects with {EXPECTED}, an object "
                "that has them in its list data, or one object a line"
            )
        value = value[lists[0]] if lists else value
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        try:
            yield f"record {number}", _object(record)
        except DataError as error:
            raise DataError(f"{path}: record {number}: {error}") from None


def _has_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object is a table by its columns: lists, as of datasets, or objects by the row's number, as of pandas."""
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns):
        return bool(columns) and all(column and all(map(str.isdecimal, column)) for column in columns)
    if len(columns) < 2 or not all(isinstance(column, list) for column in columns):
        return False
    return not any(isinstance(one, dict) for column in columns for one in column)


def _bounded_lines(file: BufferedReader[Any], path: Path) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path}: line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; expected {_A_LINE}")
        yield line


def _lines(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is not blank."""
    begin = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.removeprefix(BYTE_ORDER_MARK).decode() if number == 1 else line.decode()
        except UnicodeDecodeError as error:
            place = begin + error.start + len(line) - len(error.object)
            raise DataError(
                f"{path}: line {number}: not UTF-8 text: byte {place} is wrong; convert the file to UTF-8"
            ) from None
        begin += len(line)
        if text.strip():
            yield number, text


def _value(line: str) -> object:
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}; expected {_A_LINE}") from None


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object with {EXPECTED}, got {kind(value)}")
    return value
