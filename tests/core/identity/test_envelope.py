"""Envelopes of DSSE: its own test vector, and everything that must not open."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from fedlora.errors import IdentityError, SignatureError
from fedlora.identity.envelope import MAX_BYTES, opened, pre_authentication, read_unverified, seal
from fedlora.identity.keys import SigningKey

TYPE = "application/vnd.fedlora.test.v1+json"


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def other() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def sealed(key: SigningKey) -> bytes:
    return seal(b"what is said", TYPE, key)


def changed(sealed: bytes, change: Callable[[Any], object]) -> bytes:
    value = json.loads(sealed)
    change(value)
    return json.dumps(value).encode()


def test_what_is_signed_is_what_the_specification_says() -> None:
    """The vector of DSSE's protocol.md."""
    assert pre_authentication(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pre_authentication("ä".encode(), "ü") == b"DSSEv1 2 \xc3\xbc 2 \xc3\xa4"


def test_a_sealed_payload_is_opened_by_whoever_trusts_its_signer(
    key: SigningKey, other: SigningKey, sealed: bytes
) -> None:
    assert opened(sealed, TYPE, [other.public, key.public]) == (b"what is said", key.public)
    assert opened(json.dumps(json.loads(sealed), indent=3).encode(), TYPE, [key.public]).payload == b"what is said"


def test_each_entry_verifies_for_whoever_knows_one_of_the_two_algorithms(key: SigningKey, sealed: bytes) -> None:
    value = json.loads(sealed)
    names = [f"{key.public.keyid}.ed25519", f"{key.public.keyid}.ml-dsa-65"]
    assert [each["keyid"] for each in value["signatures"]] == names
    message = pre_authentication(base64.b64decode(value["payload"]), value["payloadType"])
    for der, each in zip((key.public.ed25519, key.public.ml_dsa_65), value["signatures"], strict=True):
        load_der_public_key(der).verify(base64.b64decode(each["sig"]), message)  # type: ignore[union-attr,call-arg]


def test_a_key_that_is_not_trusted_opens_nothing(key: SigningKey, other: SigningKey, sealed: bytes) -> None:
    with pytest.raises(
        SignatureError, match=f"signed by {key.public.keyid[:16]}; expected a signature of {other.public.keyid[:16]}"
    ):
        opened(sealed, TYPE, [other.public])
    with pytest.raises(SignatureError, match="no key at all"):
        opened(sealed, TYPE, [])


def test_what_was_signed_as_one_thing_is_not_taken_for_another(key: SigningKey, sealed: bytes) -> None:
    with pytest.raises(IdentityError, match="of type"):
        opened(sealed, TYPE + "x", [key.public])
    relabelled = changed(sealed, lambda value: value.update(payloadType=TYPE + "x"))
    with pytest.raises(SignatureError, match="does not hold"):
        opened(relabelled, TYPE + "x", [key.public])


def test_one_of_two_signatures_is_none(key: SigningKey, sealed: bytes) -> None:
    for place, left in ((0, "ed25519"), (1, "ml-dsa-65")):
        value = json.loads(sealed)
        del value["signatures"][place]
        with pytest.raises(SignatureError, match=f"without {left}"):
            opened(json.dumps(value).encode(), TYPE, [key.public])


def test_signatures_of_two_signers_do_not_make_one(key: SigningKey, other: SigningKey, sealed: bytes) -> None:
    theirs = json.loads(seal(b"what is said", TYPE, other))["signatures"]

    def mix(value: Any) -> None:
        value["signatures"][1]["sig"] = theirs[1]["sig"]

    def swap(value: Any) -> None:
        first, second = value["signatures"]
        first["sig"], second["sig"] = second["sig"], first["sig"]

    def add(value: Any) -> None:
        value["signatures"][1] = theirs[1]

    for change in (mix, swap):
        with pytest.raises(SignatureError, match="does not hold"):
            opened(changed(sealed, change), TYPE, [key.public, other.public])
    with pytest.raises(SignatureError, match="without"):
        opened(changed(sealed, add), TYPE, [key.public, other.public])


def test_a_second_signer_takes_nothing_from_the_first(key: SigningKey, other: SigningKey, sealed: bytes) -> None:
    theirs = json.loads(seal(b"what is said", TYPE, other))["signatures"]
    both = changed(sealed, lambda value: value["signatures"].extend(theirs))
    assert opened(both, TYPE, [key.public]).signer == key.public
    assert opened(both, TYPE, [other.public]).signer == other.public


def test_what_nobody_signed_opens_for_nobody_and_can_still_be_read(key: SigningKey) -> None:
    unsigned = seal(b"what is said", TYPE, None)
    assert read_unverified(unsigned, TYPE) == (b"what is said", ())
    assert read_unverified(seal(b"x", TYPE, key), TYPE) == (b"x", (key.public.keyid,))
    with pytest.raises(SignatureError, match="signed by nobody"):
        opened(unsigned, TYPE, [key.public])


def test_each_flipped_bit_is_found(key: SigningKey, sealed: bytes) -> None:
    """All bits of what is not a signature, and some of those."""
    start = sealed.index(b'"sig"')
    places = [*range(start), *range(start, len(sealed), 97), *range(len(sealed) - 12, len(sealed))]
    for place in places:
        for bit in range(8):
            content = bytearray(sealed)
            content[place] ^= 1 << bit
            with pytest.raises(IdentityError):
                opened(bytes(content), TYPE, [key.public])


def test_cut_anywhere_it_does_not_open(key: SigningKey, sealed: bytes) -> None:
    for length in range(len(sealed)):
        with pytest.raises(IdentityError):
            opened(sealed[:length], TYPE, [key.public])


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("payload"),
        lambda value: value.update(more=1),
        lambda value: value.update(payload=1),
        lambda value: value.update(payload=value["payload"] + "\n"),
        lambda value: value.update(payload="QR=="),  # two bits behind the byte
        lambda value: value.update(payload="Q\u00e9=="),
        lambda value: value.update(payloadType=None),
        lambda value: value.update(signatures={}),
        lambda value: value.update(signatures=[1]),
        lambda value: value["signatures"][0].update(more=1),
        lambda value: value["signatures"][0].update(keyid=[]),
        lambda value: value["signatures"].append(value["signatures"][0]),
        lambda value: value["signatures"].extend({"keyid": str(n), "sig": ""} for n in range(15)),
    ],
)
def test_what_is_no_envelope_is_told_so(key: SigningKey, sealed: bytes, change: Callable[[Any], object]) -> None:
    with pytest.raises(IdentityError, match=r"release\.json: .*expected"):
        opened(changed(sealed, change), TYPE, [key.public], where="release.json")


def test_a_name_that_stands_twice_is_refused(key: SigningKey, sealed: bytes) -> None:
    with pytest.raises(IdentityError, match="stands twice"):
        opened(sealed[:-1] + b',"payloadType":"x"}', TYPE, [key.public])


def test_hostile_text_is_refused_at_once(key: SigningKey) -> None:
    for content in (b"[" * 100_000, b"[]," * (1 << 20), b"\xff", b"null", b"1" * 5000, b'"' + b"x" * MAX_BYTES):
        with pytest.raises(IdentityError):
            opened(content, TYPE, [key.public])
