"""A new key is taken where the one before has signed it, along a chain, and nowhere else."""

from __future__ import annotations

import json

import pytest
from fedlora.errors import IdentityError
from fedlora.identity.canonical import canonical
from fedlora.identity.envelope import seal
from fedlora.identity.keys import SigningKey
from fedlora.identity.rotation import MOST, TYPE, reached, read_rotated, rotated

AT = "2026-12-01T00:00:00Z"


@pytest.fixture(scope="module")
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(4)]


def test_the_new_key_is_read_by_who_trusts_the_old_one(keys: list[SigningKey]) -> None:
    first, second, *_ = keys
    statement = rotated(first, second.public, AT)
    assert read_rotated(statement, [first.public]) == second.public
    with pytest.raises(IdentityError, match="signed by"):
        read_rotated(statement, [second.public])


def test_a_chain_leads_from_key_to_key_in_whichever_order_it_lies(keys: list[SigningKey]) -> None:
    first, second, third, stranger = keys
    chain = [rotated(second, third.public, AT), rotated(first, second.public, AT)]
    assert reached(first.public, chain) == [first.public, second.public, third.public]
    assert reached(second.public, chain) == [second.public, third.public]
    assert reached(third.public, chain) == [third.public]
    assert reached(stranger.public, chain) == [stranger.public]


def test_who_has_no_old_key_adds_nothing_to_a_chain(keys: list[SigningKey]) -> None:
    first, _, _, stranger = keys
    foreign = rotated(stranger, stranger.public, AT)
    borrowed = seal(canonical({"at": AT, "from": first.public.keyid, "to": stranger.public.to_pem()}), TYPE, stranger)
    assert reached(first.public, [foreign, borrowed, b"", b"{}", foreign[:-1]]) == [first.public]


def test_a_chain_that_goes_in_a_circle_or_on_without_end_is_followed_to_its_bound(keys: list[SigningKey]) -> None:
    first, second, *_ = keys
    circle = [rotated(first, second.public, AT), rotated(second, first.public, AT)]
    assert reached(first.public, circle) == [first.public, second.public]
    late = [b"x"] * MOST + circle
    assert reached(first.public, late) == [first.public]


@pytest.mark.parametrize(
    "content", [{}, {"at": AT, "from": "", "to": 1}, {"at": AT, "from": "", "to": "no key"}, [1], "text"]
)
def test_another_content_is_no_statement(keys: list[SigningKey], content: object) -> None:
    if isinstance(content, dict) and "from" in content:
        content = content | {"from": keys[0].public.keyid}
    with pytest.raises(IdentityError, match="expected"):
        read_rotated(seal(canonical(content), TYPE, keys[0]), [keys[0].public])


def test_a_statement_of_another_key_in_its_words_is_refused(keys: list[SigningKey]) -> None:
    said = {"at": AT, "from": keys[1].public.keyid, "to": keys[2].public.to_pem()}
    with pytest.raises(IdentityError, match="it is of key"):
        read_rotated(seal(canonical(said), TYPE, keys[0]), [keys[0].public])
    with pytest.raises(IdentityError, match="RFC 8785"):
        read_rotated(seal(json.dumps(said).encode(), TYPE, keys[0]), [keys[0].public])
