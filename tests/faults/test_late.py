"""A device that is too late: its round ends without it, and what it gives then is not learned from."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults
# Shorter than SuperLink takes to lose a device from sight: it takes no answer of such a one.
DEADLINE_S = 28


def test_a_straggler_is_left_out_at_the_deadline_and_its_late_answer_is_counted_and_not_learned(
    fleet: Fleet, row: Callable[[str, str], None]
) -> None:
    fleet.begin(server__min_devices=1, server__rounds=4, server__round_timeout_s=DEADLINE_S)
    hit = fleet.until_it_trains("attic")
    link = [one for one in fleet.devices["attic"].children() if one.pid != fleet.status("attic")["pid"]]
    for one in link:
        one.send_signal(signal.SIGSTOP)
    try:
        until(lambda: fleet.committed >= hit, f"round {hit} waits for the straggler")
    finally:
        for one in link:
            one.send_signal(signal.SIGCONT)
    fleet.finish()
    line = fleet.rounds()[hit - 1]
    assert "attic" not in line["train_loss"]
    assert line["excluded"]["no-answer"] >= 1
    assert line["seconds"] < DEADLINE_S + 15
    late = sum(after["late_answers"] for after in fleet.rounds()[hit:])
    assert late >= 1
    assert any("attic" in after["train_loss"] for after in fleet.rounds()[hit:]), "it takes part again"
    row(
        f"a straggler past the deadline of {DEADLINE_S} s",
        f"{line['excluded']} after {line['seconds']:.0f} s; late answers {late}",
    )
