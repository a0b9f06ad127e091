"""Finding the records of a device's data that its owner takes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlora.config.run import FieldNames
from fedlora.data.examples import Example, text_of
from fedlora.errors import ConfigError, DataError

from fedlora_client.records.data_file import content_of, format_of, read_file
from fedlora_client.records.sqlite_rows import read_query
from fedlora_client.records.withdrawn import digest_of
from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.state import now_text


@dataclass(frozen=True, slots=True)
class Found:
    """A record, or a whole file where `example` is None."""

    file: str  # relative to the data's folder
    place: str
    example: Example | None

    def entry(self) -> dict[str, str]:
        """What the file of withdrawals keeps of it: no word of its text."""
        whole = {"file": self.file, "at": now_text()}
        return whole if self.example is None else {"digest": digest_of(self.example), **whole, "place": self.place}

    def __str__(self) -> str:
        if self.example is None:
            return f"{self.file}: the whole file"
        text = " ".join(text_of(self.example).split())
        return f"{self.file}: {self.place}: {text:.60}"


def find(config: DeviceConfig, file: str | None, *, record: int | None, contains: str | None) -> list[Found]:
    """The records that are meant: the one of a number, those that contain a text, or a file. Raises FedloraError."""
    name, path = _place(config, file)
    fields = config.data.fields
    if record is None and contains is None:
        if config.data.query:
            raise ConfigError("a database is withdrawn row by row; give --record or --contains")
        return [Found(name, "", None)]
    found = [one for one in _records(config, name, path, fields) if _is_meant(one, record, contains)]
    if not found:
        what = f"record {record}" if record is not None else f"no record with {contains!r:.60}"
        raise DataError(f"{path}: {what} is not there; give the number of its line, or a text that it contains")
    return found


def _place(config: DeviceConfig, file: str | None) -> tuple[str, Path]:
    source = Path(config.data.source)
    if not source.is_dir():
        if file is not None and Path(file).name != source.name:
            raise ConfigError(f"--file {file}: the device's data are {source}; name that, or leave --file out")
        return source.name, source
    if file is None:
        raise ConfigError(f"{source} is a folder; give --file the name of one of its files")
    path = (source / file if (source / file).exists() else Path(file)).resolve()
    if not path.is_relative_to(source.resolve()):
        raise ConfigError(f"--file {file}: it is not below {source}; name a file of the device's data")
    return str(path.relative_to(source.resolve())), path


def _records(config: DeviceConfig, name: str, path: Path, fields: FieldNames) -> Iterator[Found]:
    if config.data.query:
        content = content_of(read_query(path, config.data.query, fields))
    else:
        if format_of(path) in (None, "text"):
            raise ConfigError(f"{path}: a text is withdrawn whole; leave --record and --contains out")
        content = read_file(path, fields)
    for place, example in zip(content.places, content.all, strict=True):
        yield Found(name, place, example)


def _is_meant(found: Found, record: int | None, contains: str | None) -> bool:
    if record is not None and found.place.rpartition(" ")[2] != str(record):
        return False
    return contains is None or (found.example is not None and contains in text_of(found.example))
