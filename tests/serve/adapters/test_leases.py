"""A lease is given back once, by the last who holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.loading import LoadedAdapter

VERSION = LoadedAdapter(name="poet", digest="d", number=1, values={}, rank=1, size_bytes=1, source=Path("none"))


def test_a_shared_lease_is_given_back_once_by_the_last_of_its_holders() -> None:
    given_back: list[str] = []
    lease = Lease(VERSION, lambda: given_back.append("once"))
    parts = [lease.share(), lease.share()]
    inner = parts[0].share()
    for held in (lease, *parts):
        held.release()
        held.release()
    assert given_back == []
    inner.release()
    assert given_back == ["once"]


def test_a_lease_that_was_released_is_not_shared() -> None:
    given_back: list[str] = []
    lease = Lease(VERSION, lambda: given_back.append("once"))
    lease.release()
    with pytest.raises(AssertionError, match="poet: a lease that was released cannot be shared"):
        lease.share()
    assert given_back == ["once"]
