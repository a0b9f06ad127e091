"""Messages of protobuf, read in the one way that every reader agrees on: what two could read differently is refused.

A field of a message is known or refused, and single where it is not a list; numbers are as short as they can be. So a file
that is taken holds nothing that was not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedlora.errors import GraphError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Kind = Literal["number", "float", "text", "bytes", "message", "refused"]
_WIRE_TYPES: Mapping[Kind, int] = {
    "number": _VARINT, "float": _FIXED32, "text": _BYTES, "bytes": _BYTES, "message": _BYTES,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """A field that a message may have. `refused`: one that has a name, and is told by it."""

    name: str
    kind: Kind
    is_list: bool = False


_NOTHING: Mapping[Kind, Any] = {
    "number": 0,
    "float": 0.0,
    "text": "",
    "bytes": memoryview(b""),
    "message": memoryview(b""),
}


class Message(dict[int, Field]):
    """{number: field} of a kind of message, and what a message of it holds that has no field."""

    def __init__(self, fields: Mapping[int, Field]) -> None:
        super().__init__(fields)
        self.lists = tuple(field.name for field in fields.values() if field.is_list)
        self.nothing = {
            field.name: _NOTHING[field.kind]
            for field in fields.values()
            if field.kind != "refused" and not field.is_list
        }


@dataclass(frozen=True, slots=True)
class MessageReader:
    """Reads the messages of one file, each of at most so many fields. Raises GraphError, which begins with `where`."""

    where: str
    max_fields: int

    def read(self, data: memoryview, message: Message, what: str) -> dict[str, Any]:
        """{field: value} of all fields of the message; 0, "" or nothing of one that is not there; messages stay bytes.
        `present` names the fields that are there."""
        values: dict[str, Any] = {**message.nothing, **{name: [] for name in message.lists}}
        present = values["present"] = set[str]()
        for count, (number, wire_type, value) in enumerate(self._fields(data, what)):
            if count >= self.max_fields:
                raise self.error(f"{what} has more than {self.max_fields} parts")
            field = message.get(number)
            if field is None or field.kind == "refused":
                raise self.error(f"{what} has {field.name if field else f'a field of number {number}'}")
            if field.name in present and not field.is_list:
                raise self.error(f"{what} has {field.name} twice")
            present.add(field.name)
            if field.is_list and field.kind == "number" and wire_type == _BYTES:
                values[field.name] += [_signed(each) for each in self._packed(value, what)]
                continue
            if wire_type != _WIRE_TYPES[field.kind]:
                raise self.error(f"{field.name} of {what} is of wire type {wire_type}")
            if field.is_list:
                values[field.name].append(self._value(field, value, what))
                continue
            values[field.name] = self._value(field, value, what)
        return values

    def error(self, found: str) -> GraphError:
        """The refusal of what was found."""
        return GraphError(f"{self.where}: {found}; expected what the exporter writes: export it again")

    def _value(self, field: Field, value: Any, what: str) -> Any:
        if field.kind == "number":
            return _signed(value)
        if field.kind == "float":
            return struct.unpack("<f", value)[0]
        if field.kind == "text":
            try:
                return bytes(value).decode("utf-8")
            except UnicodeDecodeError:
                raise self.error(f"{field.name} of {what} is not UTF-8") from None
        return value

    def _fields(self, data: memoryview, what: str) -> Iterator[tuple[int, int, Any]]:
        """(number, wire type, what follows) of each field."""
        at = 0
        while at < len(data):
            tag, at = self._varint(data, at, what)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _VARINT:
                value, at = self._varint(data, at, what)
                yield number, wire_type, value
                continue
            if wire_type == _BYTES:
                size, at = self._varint(data, at, what)
            elif wire_type in (_FIXED32, _FIXED64):
                size = 4 if wire_type == _FIXED32 else 8
            else:
                raise self.error(f"not an ONNX graph: {what} has a field of wire type {wire_type}")
            if size > len(data) - at:
                raise self.error(f"not an ONNX graph: {what} ends within a field")
            yield number, wire_type, data[at : at + size]
            at += size

    def _packed(self, data: memoryview, what: str) -> Iterator[int]:
        at = 0
        while at < len(data):
            value, at = self._varint(data, at, what)
            yield value

    def _varint(self, data: memoryview, at: int, what: str) -> tuple[int, int]:
        """(the number at `at`, the place after it)"""
        if at < len(data) and data[at] < 0x80:  # most are this short
            return data[at], at + 1
        value = 0
        for place, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if (byte == 0 and place) or value >= 1 << 64:
                    break
                return value, at + place + 1
        raise self.error(f"not an ONNX graph: {what} has a number that is cut off, or longer than it needs to be")


def _signed(value: int) -> int:
    """The int64 of these 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
