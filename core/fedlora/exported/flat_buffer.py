"""FlatBuffers, read with every offset checked before it is followed (https://flatbuffers.dev, internals).

A buffer begins with the offset of its root table and four letters that name the format. A table begins with the distance
to its vtable, which tells the place of each field; strings, vectors and tables lie behind offsets of their own. A reader
that trusts these numbers reads wherever they point.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_BYTES = (1 << 31) - 1  # offsets are 32 bits, some with a sign


@dataclass(frozen=True, slots=True)
class FlatVector:
    """Where the items of a vector lie."""

    begin: int
    count: int


class FlatTable:
    """One table of a buffer. Every method raises ValueError where the buffer does not hold what it announces."""

    __slots__ = ("_data", "_fields", "_position")

    def __init__(self, data: bytes, position: int) -> None:
        vtable = position - _number(data, "<i", position)
        size, span = _number(data, "<H", vtable), _number(data, "<H", vtable + 2)
        if size < 4 or size % 2 or vtable + size > len(data) or span < 4 or position + span > len(data):
            raise ValueError(f"the table at byte {position} does not fit the buffer")
        fields = struct.unpack_from(f"<{size // 2 - 2}H", data, vtable + 4)
        if any(offset and not 4 <= offset < span for offset in fields):
            raise ValueError(f"a field of the table at byte {position} lies outside of it")
        self._data, self._position, self._fields = data, position, fields

    def int32(self, field: int) -> int:
        """A number; one that is left out is 0."""
        place = self._place(field)
        return _number(self._data, "<i", place) if place else 0

    def string(self, field: int) -> str | None:
        place = self._place(field)
        if not place:
            return None
        vector = _vector(self._data, place, 1)
        end = vector.begin + vector.count
        if self._data[end : end + 1] != b"\0":
            raise ValueError(f"the text at byte {vector.begin} does not end")
        return self._data[vector.begin : end].decode("utf-8")

    def vector(self, field: int, item_bytes: int) -> FlatVector | None:
        place = self._place(field)
        return _vector(self._data, place, item_bytes) if place else None

    def tables(self, field: int, most: int) -> list[FlatTable]:
        """A vector of tables; empty where it is left out."""
        vector = self.vector(field, 4)
        if vector is None:
            return []
        if vector.count > most:
            raise ValueError(f"{vector.count} entries; at most {most} are read")
        places = range(vector.begin, vector.begin + 4 * vector.count, 4)
        return [FlatTable(self._data, _follow(self._data, place)) for place in places]

    def _place(self, field: int) -> int:
        """Where a field lies in the buffer, or 0."""
        offset = self._fields[field] if field < len(self._fields) else 0
        return self._position + offset if offset else 0


def root_table(data: bytes, identifier: bytes) -> FlatTable:
    """The root of a buffer of the format `identifier`. Raises ValueError."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes; at most {MAX_BYTES} are read")
    if data[4:8] != identifier:
        raise ValueError(f"it lacks the letters {identifier.decode()}")
    return FlatTable(data, _follow(data, 0))


def _vector(data: bytes, place: int, item_bytes: int) -> FlatVector:
    begin = _follow(data, place)
    count = _number(data, "<I", begin)
    if begin + 4 + count * item_bytes > len(data):
        raise ValueError(f"the vector at byte {begin} announces {count} items, more than the buffer holds")
    return FlatVector(begin + 4, count)


def _follow(data: bytes, place: int) -> int:
    """Where the offset at `place` points to."""
    offset = _number(data, "<I", place)
    if offset == 0:
        raise ValueError(f"the offset at byte {place} points to itself")
    return place + offset


def _number(data: bytes, kind: str, place: int) -> int:
    """A number, which is aligned to its size."""
    size = struct.calcsize(kind)
    if not 0 <= place <= len(data) - size or place % size:
        raise ValueError(f"a number at byte {place} of {len(data)} is outside the buffer, or not aligned")
    return int(struct.unpack_from(kind, data, place)[0])
