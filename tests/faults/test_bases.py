"""A device whose base is not the run's, or not whole: it trains nothing, and says which digests it expected and found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.fleets import Fleet, until
from tests.tiny.checkpoints import LLAMA, random_weights, tiny_pack, write_checkpoint

pytestmark = pytest.mark.faults


@pytest.fixture
def base(fleet: Fleet) -> Iterator[Path]:
    """The base of pantry, which may be changed; it has its own again at the end."""
    fleet.all_there()
    path = fleet.folder / "pantry" / "base"
    yield path
    shutil.rmtree(path)
    shutil.copytree(fleet.base.directory, path)
    fleet.devices["pantry"].end()


def refused(fleet: Fleet) -> tuple[dict[str, int], str]:
    """What a round counted of pantry, and what it said, where two devices are enough."""
    fleet.begin(server__min_devices=2, server__rounds=3)
    fleet.finish()
    lines = fleet.rounds()
    assert not any("pantry" in line["train_loss"] for line in lines)
    answer = fleet.status("pantry")["rounds"][-1]
    assert (answer["kind"], answer["bytes_up"]) == ("train", 0)
    return next(line["excluded"] for line in lines if line["excluded"]), answer["said"]


def test_a_base_with_a_wrong_bit_is_refused_before_training(
    fleet: Fleet, base: Path, row: Callable[[str, str], None]
) -> None:
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    excluded, said = refused(fleet)
    assert excluded == {"device-error": 1}
    assert "sha256 is" in said and "base.json says" in said
    row("a wrong bit in a device's base", f"{excluded}; {said}")


def test_a_base_that_was_replaced_is_refused_before_training(
    fleet: Fleet, base: Path, tmp_path: Path, row: Callable[[str, str], None]
) -> None:
    other = tiny_pack(tmp_path / "pack", write_checkpoint(tmp_path / "checkpoint", weights=random_weights(LLAMA, 1)))
    shutil.rmtree(base)
    shutil.copytree(other.directory, base)
    excluded, said = refused(fleet)
    assert excluded == {"device-error": 1}
    assert other.fingerprint[:16] in said
    assert fleet.base.fingerprint[:16] in said
    row("another base in a device's place", f"{excluded}; {said}")


def test_a_device_that_starts_on_a_base_with_a_wrong_bit_says_so(
    fleet: Fleet, base: Path, row: Callable[[str, str], None]
) -> None:
    fleet.devices["pantry"].end()
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = len(fleet.said("pantry"))
    fleet.start_device("pantry")
    until(lambda: "base.json says" in fleet.said("pantry")[said:], "the device says nothing of its base")
    line = next(line for line in fleet.said("pantry")[said:].splitlines() if "base.json says" in line)
    row("a device that starts on a base with a wrong bit", line)
