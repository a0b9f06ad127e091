"""Records in a table: CSV and TSV, whose first line names the fields."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedlora.config.sections import FieldNames
from fedlora.counted import counted
from fedlora.errors import DataError, NotRecordsError
from fedlora.files.json_text import parse_json

from fedlora_client.records.byte_source import MAX_LINE_BYTES, read_text
from fedlora_client.records.record_forms import EXPECTED, is_known
from fedlora_client.records.records import Records, collected

_MAX_HEADER, _MAX_COLUMNS = 1 << 20, 1 << 12  # characters of the first row, and cells in it
_LISTS = ("messages", "conversations", "tools", "choices")  # written in a cell as JSON
# An empty cell of these is an empty text; of all others, no value.
_TEXTS = ("text", "prompt", "completion", "instruction", "input", "output")
_OTHER_SEPARATORS = (";", "\t", "|")

Row = tuple[int, list[str]]  # the line where it ends, and its cells


def read_table(path: Path, fields: FieldNames | None = None, *, separator: str = ",") -> Records:
    """The records of a table. Raises DataError with the file and the line."""
    fields = fields or FieldNames()
    rows, header = _rows(path, fields, separator)
    return collected(path, _records(path, rows, header, fields), fields)


def _rows(path: Path, fields: FieldNames, separator: str) -> tuple[list[Row], list[str]]:
    """(the rows, the names of their fields)"""
    text = read_text(path)
    csv.field_size_limit(MAX_LINE_BYTES)
    header: list[str] = []
    for candidate in (separator, *(other for other in _OTHER_SEPARATORS if other != separator)):
        # The header decides what separates: spreadsheets write what their country writes.
        names = _names(text, candidate, path)
        if is_known(names, fields):
            separator, header = candidate, names
            break
        header = header or names
    else:
        got = ", ".join(header)
        raise NotRecordsError(
            f"{path}: the first line must name the columns: expected {EXPECTED}, got {got:.200}; rename them, or say what "
            "they are called in data.fields (--set data.fields.prompt=question)"
        )
    if repeated := sorted(name for name, count in Counter(filter(None, header)).items() if count > 1):
        raise DataError(f"{path}: the first line names {', '.join(repeated)} twice; rename the columns")
    return _parsed(text, separator, len(header), path), header


def _names(text: str, separator: str, path: Path) -> list[str]:
    """The cells of the first row, which a quotation mark may take over several lines."""
    reader = csv.reader(_lines(text[:_MAX_HEADER]), delimiter=separator)
    names = [name.strip() for name in next(reader, [])]
    if len(text) > _MAX_HEADER and next(reader, None) is None:
        raise NotRecordsError(
            f"{path}: the first line has more than {_MAX_HEADER} characters; it must name the columns: expected {EXPECTED}"
        )
    if len(names) > _MAX_COLUMNS:
        raise NotRecordsError(
            f"{path}: the first line names {len(names)} columns; expected at most {_MAX_COLUMNS}, among them {EXPECTED}"
        )
    return names


def _lines(text: str) -> Iterator[str]:
    """Its lines with their ends; a file in memory, as of io, would take four times its size once more."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _parsed(text: str, separator: str, columns: int, path: Path) -> list[Row]:
    """The rows below the header, each with as many cells."""
    try:
        return _quoted(text, separator, columns)
    except DataError as error:
        # Tables with tabs often have no quoting at all: a quotation mark is one.
        lines = text.split("\n")[1:]
        rows = [(number, line.split(separator)) for number, line in enumerate(lines, 2) if line.strip()]
        if separator == "\t" and all(len(cells) == columns for _, cells in rows):
            return rows
        raise DataError(f"{path}: {error}") from None


def _quoted(text: str, separator: str, columns: int) -> list[Row]:
    reader = csv.reader(_lines(text), delimiter=separator, strict=True)
    rows = []
    try:
        next(reader, None)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != columns:
                raise DataError(
                    f"line {reader.line_num}: {counted(len(cells), 'cell')}, and the first line names "
                    f"{counted(columns, 'column')}; put cells "
                    "that hold the separator, a quotation mark or a line break in quotation marks"
                )
            rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: not a table: {error}; double quotation marks inside a cell") from None
    return rows


def _records(
    path: Path, rows: list[Row], header: list[str], fields: FieldNames
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    named = {theirs: name for name, theirs in fields.given().items()}
    kinds = [named.get(name, name) for name in header]
    for line, cells in rows:
        record: dict[str, Any] = {}
        for column, (name, what, cell) in enumerate(zip(header, kinds, cells, strict=True), 1):
            value: Any = cell if cell or what in _TEXTS else None
            if what in _LISTS and value is not None:
                value = _list(cell, f"{path}: line {line}: {name}")
            record[name or f"column {column}"] = value
        yield f"line {line}", record


def _list(cell: str, where: str) -> object:
    try:
        return parse_json(cell)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}; write the list as JSON, not as Python does") from None
