"""SIGKILL of devices: the round commits with the others, and who was killed takes part again under its name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("killed", [("pantry",), ("pantry", "attic")])
def test_devices_that_are_killed_and_started_again_give_what_they_would_have_given(
    fleet: Fleet, undisturbed: str, killed: tuple[str, ...], row: Callable[[str, str], None]
) -> None:
    fleet.begin()
    fleet.until_training(2, *killed)
    for name in killed:
        fleet.devices[name].kill()
        fleet.start_device(name)  # as its unit does
    fleet.finish()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    assert fleet.rounds()[1]["train_loss"].keys() == {*fleet.names}
    assert fleet.digest() == undisturbed
    row(f"SIGKILL of {len(killed)} of 4 devices in round 2", f"asked again by name, adapter {undisturbed:.16}")


def test_a_round_commits_without_a_device_that_was_killed_and_stays_away(
    fleet: Fleet, row: Callable[[str, str], None]
) -> None:
    fleet.begin(server__min_devices=2, server__round_timeout_s=90)
    hit = fleet.until_it_trains("pantry")
    fleet.devices["pantry"].kill()
    fleet.finish()
    line = fleet.rounds()[hit - 1]
    assert "pantry" not in line["train_loss"]
    assert line["replies"] >= 2
    row("SIGKILL of a device that stays away", f"round {hit}: {line['replies']} answers, {line['excluded']}")


def test_a_trainer_that_is_killed_while_the_courier_waits_goes_on_with_the_same_result(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    fleet.begin()
    fleet.until_training(2, "kitchen")
    os.kill(fleet.status("kitchen")["pid"], signal.SIGKILL)
    fleet.finish()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    assert fleet.digest() == undisturbed
    row("SIGKILL of a trainer in round 2", f"started again, 4 of 4 devices, adapter {undisturbed:.16}")


def test_below_quorum_a_round_is_given_up_in_time_and_the_run_goes_on_when_devices_are_back(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    fleet.begin(server__round_timeout_s=150)
    fleet.until_training(2, "cellar")
    fleet.devices["cellar"].kill()
    committed = fleet.digest()
    until(lambda: "it goes on after round 1" in fleet.said(), "the round below quorum was not given up")
    assert "the run needs 4" in fleet.said() or "3 of 4 devices" in fleet.said(), fleet.said()
    assert (fleet.committed, fleet.digest()) == (1, committed)
    fleet.start_device("cellar")
    fleet.finish()
    assert fleet.digest() == undisturbed
    (line,) = [line for line in fleet.said().splitlines() if "it goes on after round 1" in line][-1:]
    row("3 of 4 devices where 4 are needed", line)
