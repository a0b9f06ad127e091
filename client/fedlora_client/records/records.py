"""What a file of records held: its examples, and what of it is not learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.config.sections import FieldNames
from fedlora.counted import counted
from fedlora.data.examples import Example
from fedlora.errors import DataError, NotRecordsError

from fedlora_client.records.record_forms import EXPECTED, parse_record

_MOST_NAMES = 12  # of fields that are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The examples of one file, in order."""

    examples: tuple[Example, ...]
    left_out: int = 0  # records that say themselves that they are not to be learned
    ignored: tuple[str, ...] = ()  # the fields that no record's form has
    places: tuple[str, ...] = ()  # where in the file each example stands, "line 3"
    owners: tuple[str, ...] = ()  # whose each example is; empty texts where no field tells

    def notices(self) -> list[str]:
        """What a person should know of it, a sentence each."""
        told = []
        if self.left_out:
            told.append(f"{counted(self.left_out, 'record')} left out: their weight is 0, or train is false")
        if self.ignored:
            more = f" and {len(self.ignored) - _MOST_NAMES} more" if len(self.ignored) > _MOST_NAMES else ""
            names = ", ".join(f"{name:.40}" for name in self.ignored[:_MOST_NAMES])
            told.append(f"fields that are not learned: {names}{more}")
        return told


def collected(path: Path, records: Iterable[tuple[str, Mapping[str, Any]]], fields: FieldNames) -> Records:
    """The examples of (place in the file, record). Raises DataError with the file and the place."""
    examples: list[Example] = []
    places: list[str] = []
    owners: list[str] = []
    ignored: dict[str, None] = {}
    left_out = 0
    for place, record in records:
        try:
            parsed = parse_record(record, fields)
        except DataError as error:
            raise DataError(f"{path}: {place}: {error}") from None
        ignored |= dict.fromkeys(parsed.ignored)
        if parsed.example is None:
            left_out += 1
        else:
            examples.append(parsed.example)
            places.append(place)
            owners.append(parsed.owner)
    if not examples:
        why = f" but {left_out} that are not to be learned" if left_out else ""
        raise NotRecordsError(f"{path}: no example in it{why}; expected a JSON object a line, with {EXPECTED}")
    return Records(
        examples=tuple(examples), left_out=left_out, ignored=tuple(ignored), places=tuple(places), owners=tuple(owners)
    )
