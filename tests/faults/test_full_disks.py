"""A disk that is full: what was there before stays whole, the message says so, and with room it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """In the block, `folder` with its content lies on a disk of that size."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk is mounted by root alone")
    copy = folder.with_name(f"{folder.name}.copy")
    shutil.copytree(folder, copy, symlinks=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)], check=True)
    try:
        shutil.copytree(copy, folder, symlinks=True, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(copy)


def fill(folder: Path) -> Path:
    """A file that takes all the room that is left."""
    path = folder / "filler"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def test_a_server_whose_disk_is_full_keeps_what_it_committed_and_goes_on_with_room(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    fleet.all_there()
    with small_disk(fleet.folder / "fleet" / "runs", 8):
        fleet.begin()
        fleet.until_training(2)
        committed = fleet.digest()
        filler = fill(fleet.folder / "fleet" / "runs")
        until(lambda: "No space left" in fleet.said(), fleet.said())
        assert (fleet.committed, fleet.digest()) == (1, committed)
        filler.unlink()
        fleet.finish()
        assert fleet.digest() == undisturbed
        fleet.server = None
    line = next(line for line in fleet.said().splitlines() if "No space left" in line)
    row("the server's disk full in round 2", line)


@pytest.mark.parametrize("is_new", [False, True], ids=["it has trained before", "its first question"])
def test_a_device_whose_disk_is_full_says_so_and_takes_part_again_with_room(
    fleet: Fleet, undisturbed: str, is_new: bool, row: Callable[[str, str], None]
) -> None:
    """It only goes without what it would keep in case it is killed; but with its first question Flower installs the app."""
    fleet.all_there()
    fleet.devices["pantry"].end()
    state, began = fleet.folder / "pantry" / "own" / "state", len(fleet.said("pantry"))
    shutil.rmtree(state / "flwr" / "apps", ignore_errors=True)
    with small_disk(state, 16):
        if not is_new:
            shutil.copytree(fleet.folder / "attic" / "own" / "state" / "flwr" / "apps", state / "flwr" / "apps")
        fleet.all_there()
        filler = fill(state)
        fleet.begin(server__min_devices=3, server__rounds=4, server__round_timeout_s=150)
        until(lambda: fleet.committed >= 1, "round 1 is not committed")
        filler.unlink()
        fleet.finish()
        lines, said = fleet.rounds(), fleet.said("pantry")[began:]
        fleet.devices["pantry"].end()
    assert [("pantry" in line["train_loss"]) for line in (lines[0], lines[-1])] == [not is_new, True]
    assert all(line["replies"] >= (3 if is_new else 4) for line in lines)
    assert is_new or fleet.digest(2) == undisturbed
    line = next((line for line in said.splitlines() if "No space left" in line or "disk of" in line), "")
    assert line, said
    counted = (
        f"{lines[0]['replies']} of 4 devices in it, excluded {lines[0]['excluded'] or 'nobody'}; 4 in the last one"
    )
    when = "at its first question" if is_new else "where it had trained before"
    row(f"a device's disk full in round 1, {when}", f"{counted}; {line}")
