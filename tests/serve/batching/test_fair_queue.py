"""Who comes next, and who may wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fedlora_serve.batching.fair_queue import FairQueue


def one(share: str) -> Any:
    return SimpleNamespace(request=SimpleNamespace(share=share))


def test_alone_who_came_first_comes_first() -> None:
    queue, asked = FairQueue(10), [one("a") for _ in range(5)]
    for each in asked:
        queue.append(each)
    assert list(queue) == asked
    for each in asked:
        assert queue.next([]) == each
        queue.remove(each)
    assert queue.next([]) is None
    assert not queue


def test_who_has_the_fewest_rows_comes_next_and_equals_take_turns() -> None:
    queue = FairQueue(100)
    for share in "aaaaaaaabbbbcc":
        queue.append(one(share))
    running: list[Any] = [one("a"), one("a"), one("c")]
    order = ""
    while (sequence := queue.next(running)) is not None:
        queue.remove(sequence)
        running.append(sequence)
        order += sequence.request.share
    assert order == "bcb" + "acb" + "ab" + "aaaaaa"  # until all have two; then in turns, as long as they wait


def test_who_is_put_back_comes_before_their_own_and_not_before_others() -> None:
    queue, first, second = FairQueue(10), one("a"), one("a")
    for each in (one("a"), one("b")):
        queue.append(each)
    preempted = [second, first]  # the newest first
    queue.put_back(preempted)
    assert preempted == []
    [other] = [each for each in queue if each.request.share == "b"]
    assert queue.next([one("a")]) == other
    assert queue.next([one("b")]) == first
    queue.remove(first)
    assert queue.next([one("b")]) == second


def test_a_full_queue_still_has_room_for_the_equal_part_of_another() -> None:
    queue = FairQueue(12)
    for _ in range(12):
        assert queue.has_room("a")
        queue.append(one("a"))
    assert not queue.has_room("a")
    for share, part in (("b", 6), ("c", 4), ("d", 3)):
        for _ in range(part):
            assert queue.has_room(share)
            queue.append(one(share))
        assert not queue.has_room(share)
    assert len(queue) == 25
