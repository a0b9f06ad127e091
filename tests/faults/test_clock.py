"""A device whose clock is not the server's: ten minutes off it is refused and says so; a little behind changes nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults
# What a device that ended while no server ran is still taken for one that is there: two of Flower's heartbeats.
_FORGOTTEN_S = 65.0


def started_at(fleet: Fleet, minutes_ahead: int) -> None:
    """Start pantry anew with its clock off by so much; time goes on for it as for all others."""
    library = fleet.folder / "wrong_clock.so"
    source = Path(__file__).with_name("wrong_clock.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    fleet.all_there()
    fleet.devices["pantry"].end()
    fleet.start_device("pantry", LD_PRELOAD=str(library), CLOCK_AHEAD_S=str(60 * minutes_ahead))


@pytest.mark.parametrize(
    ("minutes_ahead", "told"), [(10, "10 minutes ahead of the server's"), (-10, "10 minutes behind the server's")]
)
def test_a_device_whose_clock_is_ten_minutes_off_says_so_and_the_round_goes_on(
    fleet: Fleet, minutes_ahead: int, told: str, row: Callable[[str, str], None]
) -> None:
    started_at(fleet, minutes_ahead)
    time.sleep(_FORGOTTEN_S)
    try:
        fleet.start_server("--new", "--set=server.min_devices=3", "--set=server.rounds=2")
        until(lambda: told in fleet.said("pantry"), "the device does not say that its clock is off")
        fleet.finish()
        checked = fleet.fedlora("device", "check", "--dir", "pantry/own", "--length", "16")
        link = str(fleet.status("pantry")["link"]["said"])
    finally:
        fleet.devices["pantry"].end()
    assert [sorted(line["train_loss"]) for line in fleet.rounds()] == [["attic", "cellar", "kitchen"]] * 2
    assert all(line["excluded"] == {} for line in fleet.rounds())
    assert told in link
    assert "set this device's clock" in link
    assert checked.rstrip().endswith("answers"), "it is the clock of the device's processes alone that is off"
    row(f"a device's clock {minutes_ahead:+} minutes off", f"3 of 3 devices in both rounds; {link}")


def test_a_device_whose_clock_is_four_minutes_behind_gives_what_it_would_have_given(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    started_at(fleet, -4)
    try:
        fleet.begin()
        fleet.finish()
    finally:
        fleet.devices["pantry"].end()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    assert fleet.digest() == undisturbed
    row("a device's clock 4 minutes behind", f"4 of 4 devices, adapter {undisturbed:.16}")
