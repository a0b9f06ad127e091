"""A key that takes another one's place: the new public key, signed by the old one. Statements make a chain.

Who trusts a key follows the chain from there to the key that signs now. Whoever has an old key can begin a chain of its
own: a key that was stolen is revoked, not rotated.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedlora.errors import IdentityError, SignatureError
from fedlora.identity.canonical import canonical, read_canonical
from fedlora.identity.envelope import opened, seal
from fedlora.identity.keys import PublicKey, SigningKey

TYPE = "application/vnd.fedlora.rotated-key.v1+json"
MAX_BYTES = 1 << 15  # of a statement
MOST = 16  # statements that a chain is made of


def rotated(old: SigningKey, new: PublicKey, at: str) -> bytes:
    """The statement by which `new` takes the place of `old`, an envelope. `at`: when, in UTC."""
    payload = canonical({"at": at, "from": old.public.keyid, "to": new.to_pem()})
    return seal(payload, TYPE, old)


def read_rotated(statement: bytes, trusted: Iterable[PublicKey], where: str = "the statement") -> PublicKey:
    """The new key. Raises IdentityError for what is no such statement, or not by one of the trusted keys."""
    payload, signer = opened(statement, TYPE, trusted, max_bytes=MAX_BYTES, where=where)
    content = read_canonical(payload, where)
    if not isinstance(content, dict) or set(content) != {"at", "from", "to"} or not isinstance(content["to"], str):
        raise IdentityError(f"{where}: expected at, from and to, as fedlora key rotate writes them")
    if content["from"] != signer.keyid:
        raise SignatureError(f"{where}: it is of key {content['from']!r:.40}; expected one of {signer.keyid[:16]}")
    return PublicKey.from_pem(content["to"], where)


def reached(key: PublicKey, statements: Iterable[bytes]) -> list[PublicKey]:
    """The keys that a chain leads to from `key`, itself first. Statements of others are passed over."""
    keys, left = [key], list(statements)[:MOST]
    found = True
    while found:
        found = False
        for statement in list(left):
            try:
                new = read_rotated(statement, keys)
            except IdentityError:
                continue
            left.remove(statement)
            found = True
            if new not in keys:
                keys.append(new)
    return keys
