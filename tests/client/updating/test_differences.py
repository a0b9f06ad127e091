"""A device that has the parent fetches the difference alone; whatever is wrong with it, it ends with the signed file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.files.at_rest import key_id_of, written_plain
from fedlora.files.at_rest_key import WrappingKey
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.release.channels import difference_target, file_target
from fedlora.release.difference import difference
from fedlora.release.folder import read_adapter_release
from fedlora.release.installed import version_folder
from fedlora.release.manifest_parts import Parent
from fedlora_server.distribution.newest import newest_metadata
from tuf.api.metadata import TargetFile

from tests.client.updating.conftest import KEY, Fleet
from tests.tiny.adapters import random_adapter

WEIGHTS = "adapter/adapter_model.safetensors"
DIFFERENCE = difference_target("tone", 2, 1, WEIGHTS)


def moved(base: BasePack, seed: int) -> Adapter:
    """The adapter of release 1, a round later."""
    first, generator = random_adapter(base, seed=1), np.random.default_rng(seed)

    def near(values: Any) -> Any:
        return (values * (1 + generator.normal(0, 1e-4, values.shape))).astype(np.float32)

    return Adapter(first.config, {name: LoraPair(near(p.lora_A), near(p.lora_B)) for name, p in first.pairs.items()})


def release(fleet: Fleet, version: int, parent: int, **changed: Any) -> Path:
    before = read_adapter_release(fleet.folder / f"release-{parent}-stable", [KEY.public])
    vouched = Parent(version=parent, manifest_sha256=before.digest)
    return fleet.publish(version, adapter=moved(fleet.base, version), parent=vouched, **changed)


def fetched(fleet: Fleet) -> list[str]:
    """What of version 2's weights was fetched, by its folder."""
    return [
        path.split("/")[2] for path in fleet.server.asked if path.startswith("/targets/") and ".safetensors" in path
    ]


@pytest.fixture
def device(fleet: Fleet) -> Fleet:
    """It has version 1; version 2 is given out, with its difference."""
    fleet.publish(1)
    fleet.update()
    release(fleet, 2, 1)
    fleet.server.asked.clear()
    return fleet


def check_in_use(fleet: Fleet, version: int = 2) -> Path:
    current = fleet.installed.current
    assert current is not None and current.version == version
    folder = version_folder(fleet.settings.place, current)
    assert read_adapter_release(folder, [KEY.public]).manifest.version == version
    return folder


def give(fleet: Fleet, content: bytes) -> None:
    """Another difference, signed by every key of the repository."""
    newest = newest_metadata(fleet.repository.path)
    file = TargetFile.from_data(DIFFERENCE, content, ["sha256"])
    place = fleet.repository._place(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    newest.targets.signed.targets[DIFFERENCE] = file
    now = datetime.now(UTC).replace(microsecond=0)
    fleet.repository._commit(
        newest.targets.signed, newest.snapshot.signed, newest.timestamp.signed, newest.root.signed, now
    )


def targets(fleet: Fleet) -> dict[str, TargetFile]:
    return newest_metadata(fleet.repository.path).targets.signed.targets


def test_the_difference_is_smaller_and_all_that_is_fetched(device: Fleet) -> None:
    whole, part = targets(device)[file_target("tone", 2, WEIGHTS)], targets(device)[DIFFERENCE]
    assert part.length < 0.95 * whole.length
    assert device.update().result == "installed"
    assert fetched(device) == ["differences"]
    check_in_use(device)


@pytest.mark.parametrize("content", [None, b"another"], ids=["missing", "damaged"])
def test_without_the_parent_s_file_a_release_is_given_out_whole_and_it_is_said(
    fleet: Fleet, content: bytes | None
) -> None:
    fleet.publish(1)
    place = fleet.repository._place(targets(fleet)[file_target("tone", 1, WEIGHTS)])
    place.unlink()
    if content:
        place.write_bytes(content)
    release(fleet, 2, 1)
    assert DIFFERENCE not in targets(fleet) and file_target("tone", 2, WEIGHTS) in targets(fleet)
    [told] = fleet.told
    assert told.startswith("no difference to version 1 is given out, devices fetch the whole file: ")


def test_a_device_without_the_parent_fetches_the_whole(fleet: Fleet) -> None:
    fleet.publish(1)
    release(fleet, 2, 1)
    assert fleet.update().result == "installed"
    assert fetched(fleet) == ["releases"]
    check_in_use(fleet)


def test_one_whose_parent_was_changed_on_its_disk_does_too(device: Fleet) -> None:
    current = device.installed.current
    assert current is not None
    weights = version_folder(device.settings.place, current) / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert device.update().result == "installed"
    assert fetched(device) == ["differences", "releases"]
    check_in_use(device)


SPOILED: dict[str, Callable[[bytes], bytes | None]] = {
    "no stream": lambda sound: b"x",
    "cut off": lambda sound: sound[:-3],
    "of another file": lambda sound: difference(bytes(40_000), bytes(40_000)),
    "changed": lambda sound: sound[:20] + bytes([sound[20] ^ 1]) + sound[21:],
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_difference_that_makes_another_file_costs_time(device: Fleet, spoil: Callable[[bytes], bytes | None]) -> None:
    sound = device.repository._place(targets(device)[DIFFERENCE]).read_bytes()
    give(device, spoil(sound) or b"")
    assert device.update().result == "installed"
    assert fetched(device) == ["differences", "releases"]
    check_in_use(device)


def test_a_sound_difference_to_another_adapter_is_not_taken(device: Fleet) -> None:
    """By who holds every key of the repository, and not the release key."""
    old = (device.folder / "release-1-stable" / WEIGHTS).read_bytes()
    made = difference(old, bytes(len(old)))
    assert made is not None
    give(device, made)
    assert device.update().result == "installed"
    assert fetched(device) == ["differences", "releases"]
    check_in_use(device)


def test_a_mirror_that_lies_about_the_difference_alone_costs_time(device: Fleet) -> None:
    place = device.repository._place(targets(device)[DIFFERENCE])
    place.write_bytes(bytes(place.stat().st_size))
    assert device.update().result == "installed"
    assert fetched(device) == ["differences", "releases"]
    check_in_use(device)
    place.unlink()


def test_one_that_is_not_smaller_or_of_another_rank_is_not_given_out(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(1)
    fleet.update()
    monkeypatch.setattr("fedlora_server.distribution.repository._WORTH_IT", 0.01)
    release(fleet, 2, 1)
    monkeypatch.undo()
    before = read_adapter_release(fleet.folder / "release-2-stable", [KEY.public])
    fleet.publish(3, lora=LoraConfig(rank=5), parent=Parent(version=2, manifest_sha256=before.digest))
    assert [path for path in targets(fleet) if path.startswith("differences/")] == []
    assert fleet.update().result == "installed"
    check_in_use(fleet, 3)


def test_a_parent_that_lies_encrypted_is_as_good(fleet: Fleet, at_rest_key: WrappingKey) -> None:
    with written_plain():
        fleet.publish(1)
        release(fleet, 2, 1)
    # The newest is 2: take 1 first, as a device of an earlier day has it.
    second = newest_metadata(fleet.repository.path).targets.signed.targets
    assert DIFFERENCE in second
    other = dataclasses.replace(fleet)
    assert other.update().result == "installed"
    with written_plain():
        release(fleet, 3, 2)
    fleet.server.asked.clear()
    assert fleet.update().result == "installed"
    assert fetched(fleet) == ["differences"]
    assert key_id_of(check_in_use(fleet, 3) / WEIGHTS) == at_rest_key.id.hex()
