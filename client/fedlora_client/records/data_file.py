"""One file of a device's data: how it is read, by its name; its first bytes have the last word."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedlora.config.sections import FieldNames
from fedlora.data.datasets import split_lines, split_records
from fedlora.data.examples import Example
from fedlora.errors import DataError

from fedlora_client.records.arrow_rows import read_parquet
from fedlora_client.records.byte_source import COMPRESSED, read_text
from fedlora_client.records.jsonl import parse_example, read_json
from fedlora_client.records.record_forms import parse_record
from fedlora_client.records.records import Records
from fedlora_client.records.tables import read_table

Format = Literal["text", "lines", "document", "csv", "tsv", "parquet"]
FORMATS: dict[str, Format] = {
    ".txt": "text", ".jsonl": "lines", ".ndjson": "lines", ".jsonlines": "lines", ".json": "document", ".csv": "csv",
    ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
}  # fmt: skip

_LOOKED_AT = 1 << 16  # characters of a text, for a hint

Split = tuple[tuple[Example, ...], tuple[Example, ...]]  # train, held-out


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContent:
    """What a file gives: all of it, and in two parts."""

    all: tuple[Example, ...]
    split: Split
    left_out: int = 0
    notices: tuple[str, ...] = ()
    places: tuple[str, ...] = ()  # of `all` in the file, where it holds records
    owners: tuple[str, ...] = ()  # of `all`, where data.fields names the field that tells


def format_of(file: Path) -> Format | None:
    """How a file of this name is read; None where the name does not tell."""
    return next((kind for suffix, kind in FORMATS.items() if plain_name(file).endswith(suffix)), None)


def plain_name(file: Path) -> str:
    """The file's name in lower case, as if it were not compressed."""
    name = file.name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED if name.endswith(suffix)), name)


def stem(file: Path) -> str:
    """The file's name without its suffixes, those that tell how it is read."""
    name = file.name[: len(plain_name(file))]
    return next((name[: -len(suffix)] for suffix in FORMATS if name.lower().endswith(suffix)), Path(name).stem)


def read_file(file: Path, fields: FieldNames) -> FileContent:
    """Its examples; a file whose name does not tell is text. Raises DataError."""
    match format_of(file):
        case "lines":
            return content_of(read_json(file, fields))
        case "document":
            return content_of(read_json(file, fields, is_document=True))
        case "csv":
            return content_of(read_table(file, fields))
        case "tsv":
            return content_of(read_table(file, fields, separator="\t"))
        case "parquet":
            return content_of(read_parquet(file, fields))
        case _:
            text = read_text(file)
            first, last = split_lines(text)
            split: Split = ((first,) if first else (), (last,) if last else ())
            return FileContent(all=(text,) if text else (), split=split, notices=_looks_like_records(text))


def content_of(records: Records) -> FileContent:
    """What the records give, the last of them held out in the second part."""
    return FileContent(
        all=records.examples,
        split=split_records(records.examples),
        left_out=records.left_out,
        notices=tuple(records.notices()),
        places=records.places,
        owners=records.owners,
    )


def _looks_like_records(text: str) -> tuple[str, ...]:
    line, _, _ = text.partition("\n")
    try:
        begin = text[:_LOOKED_AT]
        if re.match(r"\s*\[\s*\{", begin):
            parse_record(json.JSONDecoder().raw_decode(begin, begin.index("{"))[0])
            return ("learned as plain text, though it is a list of records; a file of them ends in .json",)
        if line.startswith("{"):
            parse_example(line)
            return ("learned as plain text, though its first line is a record; a file of records ends in .jsonl",)
    except (DataError, ValueError, RecursionError):  # such as a first record that is longer
        pass
    return ()
