"""Who has the next turn in a few threads."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fedlora_serve.http.service.fair_threads import FairThreads

WAIT_S = 30


def test_those_who_asked_take_turns_whoever_asked_for_more() -> None:
    threads, opened, order = FairThreads(1, "test"), threading.Event(), list[str]()
    first = threads.submit("a", lambda: opened.wait(WAIT_S))
    rest = [threads.submit(share, lambda share=share: order.append(share)) for share in "aaaaabbc"]  # type: ignore[misc]
    opened.set()
    assert first.result(WAIT_S)
    for future in rest:
        future.result(WAIT_S)
    assert "".join(order) == "abcabaaa"


def test_what_is_raised_is_told_and_what_nobody_waits_for_is_not_begun() -> None:
    threads, opened, done = FairThreads(2, "test"), threading.Event(), list[int]()
    for _ in range(2):
        threads.submit("a", lambda: opened.wait(WAIT_S))
    cancelled = threads.submit("a", lambda: done.append(1))
    assert cancelled.cancel()
    opened.set()
    with pytest.raises(ZeroDivisionError):
        threads.submit("a", lambda: 1 // 0).result(WAIT_S)
    assert asyncio.run(threads.run("b", lambda: 7)) == 7
    assert not done
