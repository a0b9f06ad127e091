"""SIGKILL of what a server is made of, in the middle of a round: the run ends with the adapter of an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults

# What is killed, by its command; and what the operator reads then.
PARTS = {
    "the ServerApp": (r"flwr-serverapp", "it goes on after round 1"),
    "superexec": (r"flower-superexec", "superexec had ended; it was started again"),
    "SuperLink": (r"flower-superlink", "SuperLink had ended; it was started again"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_run_whose_server_loses_a_part_ends_with_the_adapter_of_an_undisturbed_one(
    fleet: Fleet, undisturbed: str, part: str, row: Callable[[str, str], None]
) -> None:
    command, told = PARTS[part]
    fleet.begin()
    fleet.until_training(2)
    (victim, *_) = fleet.server_part(command)
    victim.kill()
    fleet.finish()
    assert told in fleet.said()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    assert fleet.digest() == undisturbed
    row(f"SIGKILL of {part} in round 2", f"{told}; 4 of 4 devices, adapter {undisturbed:.16} as undisturbed")


def test_a_superlink_that_is_killed_three_times_in_a_row_costs_no_round(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    fleet.begin()
    fleet.until_training(2)
    killed = list[int]()
    while len(killed) < 3:  # the second and the third one as soon as it is there
        until(lambda: any(one.pid not in killed for one in fleet.server_part("flower-superlink")), fleet.said())
        for one in fleet.server_part("flower-superlink"):
            killed.append(one.pid)
            one.kill()
    fleet.finish()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    assert fleet.digest() == undisturbed
    row("SIGKILL of SuperLink, three times in a row in round 2", f"4 of 4 devices, adapter {undisturbed:.16}")


def test_all_is_killed_and_what_the_units_start_goes_on_with_the_round(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    fleet.begin()
    fleet.until_training(2)
    assert fleet.server is not None
    for process in (fleet.server, *fleet.devices.values()):
        process.kill()
    assert (fleet.committed, fleet.digest() == undisturbed) == (1, False)
    fleet.start_server()  # the commands of the units, all at once
    for name in fleet.names:
        fleet.start_device(name)
    fleet.finish()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    assert fleet.digest() == undisturbed
    row(
        "SIGKILL of everything in round 2, then the units' commands",
        f"it went on after round 1, adapter {undisturbed:.16}",
    )
