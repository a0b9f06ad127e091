"""Rounds that do not wait, over real processes: a server that is killed goes on, and a slow device slows nobody."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import mean

import psutil
import pytest

from tests.faults.fleets import Fleet, until
from tests.tiny.checkpoints import tree

pytestmark = pytest.mark.faults
TIMES_SLOWER = 10


@contextmanager
def slowed(pid: int, times: int) -> Iterator[None]:
    """In the block the process has one part in so many of its time."""
    process, over, part_s = psutil.Process(pid), threading.Event(), 0.1

    def keep_slow() -> None:
        with suppress(psutil.Error):
            while not over.wait(part_s):
                process.send_signal(signal.SIGSTOP)
                over.wait(part_s * (times - 1))
                process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=keep_slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)


def test_a_server_of_rounds_that_do_not_wait_is_killed_and_goes_on_at_its_last_commit(
    fleet: Fleet, row: Callable[[str, str], None]
) -> None:
    fleet.begin(server__mode="async", server__rounds=6, server__min_devices=2)
    until(lambda: fleet.committed >= 2, "nothing is committed")
    assert fleet.server is not None
    fleet.server.kill()
    at, before = fleet.committed, tree(fleet.run / "rounds")
    fleet.start_server()
    fleet.finish()
    lines = fleet.rounds()
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    now = tree(fleet.run / "rounds")
    assert {name: now[name] for name in before} == before, "what was committed is as it was"
    assert all(line["replies"] >= 4 for line in lines)
    row("SIGKILL of the server where rounds do not wait", f"after commit {at}; it went on to commit 6")


def test_a_device_ten_times_slower_does_not_hold_up_commits(fleet: Fleet, row: Callable[[str, str], None]) -> None:
    """Three of four answer again while it trains. Seconds are told, not asserted: others use the machine too."""
    told = []
    for mode, rounds in (("sync", 3), ("async", 9)):
        fleet.begin(server__mode=mode, server__rounds=rounds)
        fleet.finish()
        alike = seconds(fleet)
        fleet.begin(server__mode=mode, server__rounds=rounds, server__min_devices=3)
        with slowed(fleet.status("pantry")["pid"], TIMES_SLOWER):
            fleet.finish()
        told.append(f"{mode} {alike:.1f} s a commit, {seconds(fleet):.1f} s with it ({seconds(fleet) / alike:.2f})")
        without = [line["round"] for line in fleet.rounds() if "pantry" not in line["train_loss"]]
        assert bool(without) == (mode == "async")
        assert len(without) >= (5 if mode == "async" else 0), "commits went on while it trained"
    row(f"a device {TIMES_SLOWER} times slower", "; ".join(told))


def seconds(fleet: Fleet) -> float:
    """Per commit, without the first one."""
    return mean(float(line["seconds"]) for line in fleet.rounds()[1:])
