"""A signed envelope, as DSSE v1 has it: a payload, its type, and who signed both.

    {"payload": BASE64, "payloadType": TYPE,
     "signatures": [{"keyid": "HEX.ed25519", "sig": BASE64}, {"keyid": "HEX.ml-dsa-65", "sig": BASE64}]}

What is signed is PAE(TYPE, payload) = "DSSEv1" SP len(TYPE) SP TYPE SP len(payload) SP payload: the type is a domain of its
own, so what was signed as one thing is never taken for another. A pair of keys makes two entries, and both must hold.
See https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any, NamedTuple

from fedlora.errors import IdentityError, SignatureError
from fedlora.files.json_text import parse_json
from fedlora.identity.canonical import canonical
from fedlora.identity.keys import PublicKey, Signatures, SigningKey

MAX_BYTES = 1 << 24  # of an envelope
MAX_ENTRIES = 16  # signatures that are looked at
_EXPECTED = "expected a DSSE envelope: payload, payloadType and signatures"
_ALGORITHMS = ("ed25519", "ml-dsa-65")


class Opened(NamedTuple):
    """What an envelope held, and whose it is."""

    payload: bytes
    signer: PublicKey


def pre_authentication(payload: bytes, payload_type: str) -> bytes:
    """PAE(payload_type, payload): the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, key: SigningKey | None) -> bytes:
    """The envelope of a payload, signed by both halves of a pair: JSON in its one form. Without a key, signed by nobody."""
    entries = []
    if key is not None:
        keyid = key.public.keyid
        signatures = zip(_ALGORITHMS, key.sign(pre_authentication(payload, payload_type)), strict=True)
        entries = [{"keyid": f"{keyid}.{name}", "sig": base64.b64encode(each).decode()} for name, each in signatures]
    return canonical(
        {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": entries}
    )


def opened(
    content: bytes,
    payload_type: str,
    trusted: Iterable[PublicKey],
    *,
    max_bytes: int = MAX_BYTES,
    where: str = "the envelope",
) -> Opened:
    """What an envelope holds, once both signatures of one of the trusted pairs hold.

    Entries of others are passed over. Raises IdentityError, which begins with `where`, for what is no envelope of this
    type, and SignatureError where none of the trusted signed it.
    """
    payload, entries = _parsed(content, payload_type, max_bytes, where)
    message = pre_authentication(payload, payload_type)
    keys = list(trusted)
    for key in keys:
        found = [entries.get(f"{key.keyid}.{name}") for name in _ALGORITHMS]
        if all(each is None for each in found):
            continue
        if (
            absent := next((name for name, each in zip(_ALGORITHMS, found, strict=True) if each is None), None)
        ) is not None:
            raise SignatureError(
                f"{where}: key {key.keyid[:16]} signed it without {absent}; expected both signatures of the pair"
            )
        try:
            key.verify(message, Signatures(*found))  # type: ignore[arg-type]  # none of them is None
        except SignatureError as error:
            raise SignatureError(f"{where}: {error}") from None
        return Opened(payload, key)
    signers = ", ".join(sorted({name.partition(".")[0][:16] for name in entries})) or "nobody"
    told = ", ".join(key.keyid[:16] for key in keys) or "no key at all"
    raise SignatureError(f"{where}: signed by {signers}; expected a signature of {told}")


class Unverified(NamedTuple):
    """What an envelope holds, and whose it says that it is."""

    payload: bytes
    signers: tuple[str, ...]  # ids of keys


def read_unverified(
    content: bytes, payload_type: str, *, max_bytes: int = MAX_BYTES, where: str = "the envelope"
) -> Unverified:
    """What an envelope holds, whoever signed it, or nobody. Raises IdentityError for what is no envelope of this type."""
    payload, entries = _parsed(content, payload_type, max_bytes, where)
    return Unverified(payload, tuple(dict.fromkeys(name.partition(".")[0] for name in entries)))


def _parsed(content: bytes, payload_type: str, max_bytes: int, where: str) -> tuple[bytes, dict[str, bytes]]:
    """(payload, {keyid: signature}). Raises IdentityError."""
    if len(content) > max_bytes:
        raise IdentityError(f"{where}: {len(content)} bytes; at most {max_bytes} are read")
    try:
        value = parse_json(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"{where}: not JSON: {error}; {_EXPECTED}") from None
    if not isinstance(value, dict) or set(value) != {"payload", "payloadType", "signatures"}:
        raise IdentityError(f"{where}: {_told(value)}; {_EXPECTED}")
    if value["payloadType"] != payload_type:
        raise IdentityError(f"{where}: of type {value['payloadType']!r:.100}; expected {payload_type}")
    signatures = value["signatures"]
    if not isinstance(signatures, list) or len(signatures) > MAX_ENTRIES:
        raise IdentityError(f"{where}: signatures: expected a list of at most {MAX_ENTRIES}")
    entries: dict[str, bytes] = {}
    for each in signatures:
        if not isinstance(each, dict) or set(each) != {"keyid", "sig"} or not isinstance(each["keyid"], str):
            raise IdentityError(f"{where}: signatures: {_told(each)}; expected entries of keyid and sig")
        if each["keyid"] in entries:
            raise IdentityError(f"{where}: two signatures of {each['keyid']!r:.100}; expected one of each key")
        entries[each["keyid"]] = _decoded(each["sig"], f"{where}: sig")
    return _decoded(value["payload"], f"{where}: payload"), entries


def _decoded(text: object, where: str) -> bytes:
    """The bytes of base64 in its one form: no line breaks, no bits behind the last byte. Raises IdentityError."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None:
        raise IdentityError(f"{where}: not base64; expected the text that was written") from None
    if base64.b64encode(data).decode() != text:
        raise IdentityError(f"{where}: base64 with bits behind its last byte; expected the text that was written")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs; ValueError for a name that stands in it twice, which two readers may read in two ways."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return value


def _told(value: object) -> str:
    return f"an object of {', '.join(map(repr, value))}"[:200] if isinstance(value, dict) else type(value).__name__
