"""The records of a run: a chain of rounds, each naming the one before, and what stands at its end.

    RUN/rounds/0003/record.json     round 3: the digests of all of its files, who gave what, the digest of record 2
    RUN/rounds/0003/answers.jsonl   what the devices signed, a line each, in the order of the record; only in a fleet
    RUN/head.json                   the last round that was measured, and the digests of the files beside it
    RUN/keys/                       ID.pub, the public half of each key that signed; DIGEST.rotated.json, for a new one

Records are DSSE envelopes over canonical JSON. A server without a key leaves their signatures empty: then the chain shows
what was changed by accident, not by whom it was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fedlora.errors import AtRestError, IdentityError
from fedlora.files.at_rest import plain_chunks, plain_size
from fedlora.files.bounded import read_bounded
from fedlora.identity.canonical import canonical, read_canonical
from fedlora.identity.envelope import opened, read_unverified, seal
from fedlora.identity.keys import PublicKey, SigningKey

ROUNDS, RECORD, ANSWERS, HEAD, KEYS = "rounds", "record.json", "answers.jsonl", "head.json", "keys"
PUBLIC, ROTATED = ".pub", ".rotated.json"  # of the files in KEYS, after a key's id or a digest
MAX_BYTES = 1 << 26  # of a record: a line of each device's is in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What one device gave to a round."""

    device: str  # its name
    key: str  # the id of the key that signed it; "" where nothing was signed
    update: str  # sha256 of its bytes, as they came
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEntry:
    """The record of one committed round."""

    TYPE: ClassVar[str] = "application/vnd.fedlora.round.v1+json"

    run: str
    round: int
    base: str  # the fingerprint
    method: str
    at: str  # UTC
    previous: str  # sha256 of the record before, as a file; "" where there is none
    files: Mapping[str, str]  # {path in the round's directory: its mark}, of all but this one
    given: Sequence[Given] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """What stands at the end of a run: written again whenever something beside the rounds has changed."""

    TYPE: ClassVar[str] = "application/vnd.fedlora.head.v1+json"

    run: str
    round: int  # the last one
    record: str  # sha256 of its record, as a file; "" before the first
    files: Mapping[str, str]  # {file beside this one: its mark}


Content = TypeVar("Content", RoundEntry, RunHead)


def sealed(content: RoundEntry | RunHead, key: SigningKey | None) -> bytes:
    """The bytes of its file; without a key, nobody's."""
    return seal(canonical(asdict(content)), content.TYPE, key)


def read_sealed(kind: type[Content], data: bytes, trusted: Iterable[PublicKey] | None, where: str) -> Content:
    """What a file says; without `trusted`, whoever signed it. Raises IdentityError, which begins with `where`.

    With it, SignatureError where none of those keys signed it.
    """
    if trusted is None:
        payload = read_unverified(data, kind.TYPE, max_bytes=MAX_BYTES, where=where).payload
    else:
        payload = opened(data, kind.TYPE, trusted, max_bytes=MAX_BYTES, where=where).payload
    value = _checked(kind, read_canonical(payload, where), where)
    if kind is RoundEntry:
        value["given"] = tuple(Given(**_checked(Given, each, f"{where}: given")) for each in value["given"])
    return kind(**value)


def signers(data: bytes, kind: type[RoundEntry | RunHead], where: str) -> tuple[str, ...]:
    """The ids of the keys that a file says it is signed by, of which nothing is verified here."""
    return read_unverified(data, kind.TYPE, max_bytes=MAX_BYTES, where=where).signers


def mark_of(path: Path, known: str | None = None) -> str:
    """By which a record knows a file: the sha256 of its content, and how many bytes that has. Raises OSError, AtRestError.

    Whether the file is encrypted at rest is nothing that a record tells. With its digest `known` it is not read.
    """
    if known is not None:
        return f"{known} {plain_size(path)}"
    found, size = hashlib.sha256(), 0
    for chunk in plain_chunks(path):
        found.update(chunk)
        size += len(chunk)
    return f"{found.hexdigest()} {size}"


def is_marked(path: Path, mark: str) -> bool:
    """Whether a file is the one of that mark. No more is read than the mark says: holes in a file have no end.

    Raises IdentityError for one that is encrypted at rest and cannot be opened.
    """
    size = mark.rpartition(" ")[2]
    try:
        if path.is_symlink() or not path.is_file() or str(plain_size(path)) != size:
            return False
        return mark_of(path) == mark
    except OSError:
        return False
    except AtRestError as error:
        raise IdentityError(str(error)) from None


def read_record(path: Path) -> bytes:
    """The bytes of a record. Raises IdentityError where there is none."""
    try:
        return read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; expected the record of a run") from None


def _checked(kind: type, value: Any, where: str) -> dict[str, Any]:
    """The fields of a record, each of its type. Raises IdentityError."""
    names = {each.name: each.type for each in fields(kind)}
    if not isinstance(value, dict) or set(value) != set(names):
        raise IdentityError(f"{where}: expected the fields {', '.join(names)}")
    for name, type_name in names.items():
        got = value[name]
        if type_name.startswith("Mapping"):
            is_sound = isinstance(got, dict) and all(isinstance(each, str) for each in got.values())
        elif type_name.startswith("Sequence"):
            is_sound = isinstance(got, list)
        else:
            is_sound = type(got) is int and got >= 0 if type_name == "int" else isinstance(got, str)
        if not is_sound:
            raise IdentityError(f"{where}: {name} is {got!r:.60}; expected {type_name} as a server writes it")
    return dict(value)
