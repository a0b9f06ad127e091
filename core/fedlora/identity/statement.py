"""What a server asks and a device answers, signed: who says what to whom, in which round, and after which record.

Two types of envelopes, so that one is never taken for the other. Both are over the digest of what travels beside them: an
update, or the canonical JSON of what was measured. An answer names its instruction by digest, which no other has: its
counter rises with everything that a server's key ever signed. Sender and receiver are ids of keys: names are others' to
give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

from fedlora.errors import IdentityError, SignatureError
from fedlora.identity.canonical import canonical, read_canonical
from fedlora.identity.envelope import opened, seal
from fedlora.identity.keys import PublicKey, SigningKey

INSTRUCTION = "application/vnd.fedlora.instruction.v1+json"
ANSWER = "application/vnd.fedlora.answer.v1+json"
MAX_BYTES = 1 << 15  # of an envelope; a run's number may be long
MAX_COUNTER = (1 << 53) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One instruction or answer."""

    kind: str  # train or evaluate
    run: str
    round: int
    sender: str  # the id of the key that signs, ...
    receiver: str  # ... and of the one that this is for
    payload: str  # sha256 of what travels beside it
    base: str  # the fingerprint of the run's base
    config: str  # sha256 of the canonical JSON of the run's configuration, as Flower hands it to both
    counter: int  # of the instruction; an answer has that of what it answers
    head: str  # sha256 of the record of the last committed round, "" before the first ...
    head_round: int  # ... and which round that is
    instruction: str = ""  # of an answer: sha256 of what it answers

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "int" and not (type(value) is int and 0 <= value <= MAX_COUNTER):
                raise IdentityError(f"{each.name}: {value!r:.60}; expected a whole number from 0 to {MAX_COUNTER}")
            if each.type == "str" and type(value) is not str:
                raise IdentityError(f"{each.name}: {value!r:.60}; expected a text")

    def differing(self, other: Statement, *names: str) -> str:
        """The first of the named fields in which they differ; "" where there is none."""
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


_NAMES = tuple(each.name for each in fields(Statement))


class Said(NamedTuple):
    """A statement whose signatures hold."""

    statement: Statement
    signer: PublicKey
    digest: str  # sha256 of the envelope's payload


def signed(statement: Statement, kind: str, key: SigningKey) -> bytes:
    """The envelope of a statement: of kind INSTRUCTION or ANSWER."""
    return seal(_content(statement), kind, key)


def digest_of(statement: Statement) -> str:
    """By which an answer names its instruction, and nothing else."""
    return digest(_content(statement))


def _content(statement: Statement) -> bytes:
    return canonical({name: getattr(statement, name) for name in _NAMES})


def read_signed(content: bytes, kind: str, trusted: Iterable[PublicKey], where: str) -> Said:
    """A statement in its envelope. Raises IdentityError for what is none, SignatureError for one of nobody's trusted."""
    payload, signer = opened(content, kind, trusted, max_bytes=MAX_BYTES, where=where)
    value = read_canonical(payload, where)
    if not isinstance(value, dict) or set(value) != {*_NAMES}:
        raise IdentityError(f"{where}: expected the fields {', '.join(_NAMES)}")
    try:
        statement = Statement(**value)
    except IdentityError as error:
        raise IdentityError(f"{where}: {error}") from None
    if statement.sender != signer.keyid:
        raise SignatureError(
            f"{where}: key {signer.keyid[:16]} signs for {statement.sender!r:.20}; expected its own id as the sender"
        )
    return Said(statement, signer, digest(payload))


def digest(content: bytes | bytearray | memoryview) -> str:
    """sha256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of_config(config: Mapping[str, bool | int | float | str]) -> str:
    """Of a run's flat configuration. Raises IdentityError for what JSON has no form of."""
    # 1, 1.0 and True are one key of a cache, and three values here.
    return _digest_of_items(tuple((name, type(value), value) for name, value in config.items()))


@lru_cache(maxsize=16)
def _digest_of_items(items: tuple[tuple[str, type, bool | int | float | str], ...]) -> str:
    """A run's configuration is the same in all of its rounds."""
    return digest(canonical({name: value for name, _, value in items}))


def digest_of_metrics(metrics: Mapping[str, float]) -> str:
    """Of what a device measured. Raises IdentityError for a number that is not finite."""
    return digest(canonical({name: float(value) for name, value in metrics.items()}))
