"""A device that is too late: its round ends without it, and what it gives then is not learned from."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults


def test_a_straggler_is_left_out_at_the_deadline_and_its_late_answer_is_counted_and_not_learned(
    fleet: Fleet, row: Callable[[str, str], None]
) -> None:
    fleet.begin(server__min_devices=3, server__round_timeout_s=60)
    fleet.until_training(1, "attic")
    link = [one for one in fleet.devices["attic"].children() if one.pid != fleet.status("attic")["pid"]]
    for one in link:
        one.send_signal(signal.SIGSTOP)
    until(lambda: fleet.committed >= 1, "round 1 waits for the straggler")
    for one in link:
        one.send_signal(signal.SIGCONT)
    fleet.finish()
    first, second = fleet.rounds()
    assert "attic" not in first["train_loss"]
    assert (first["replies"], first["excluded"]) == (3, {"no-answer": 1})
    assert first["seconds"] < 60 + 30
    row(
        "a straggler past the deadline of 60 s",
        f"round 1 of 3 in {first['seconds']:.0f} s, {first['excluded']}; late {second['late_answers']}",
    )
