"""A name belongs to one key, a key to one name, and a revoked key to nobody ever again."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fedlora.errors import ConfigError
from fedlora_server.fleet.devices import Devices, changing, read_devices
from fedlora_server.fleet.roll import VARIABLE, Roll, roll_of_environment
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny.bundles import device_key

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
KEYS = [device_key("nistp256")[1] for _ in range(4)]


def test_devices_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    with changing(path) as devices:
        devices.add("kitchen", KEYS[0], NOW)
        devices.add("cellar", KEYS[1], NOW)
        devices.revoke("kitchen", NOW)
    read = read_devices(path)
    assert [(e.name, bool(e.revoked)) for e in read.entries] == [("kitchen", True), ("cellar", False)]
    assert [e.name for e in read.current] == ["cellar"]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    with pytest.raises(ConfigError), changing(path) as devices:
        devices.add("kitchen", KEYS[0], NOW)
        devices.add("kitchen", KEYS[1], NOW)
    assert not path.exists()


def test_what_is_taken_is_refused_with_the_way_out(tmp_path: Path) -> None:
    devices = Devices(tmp_path)
    devices.add("kitchen", KEYS[0], NOW)
    with pytest.raises(ConfigError, match="fedlora server revoke kitchen"):
        devices.add("kitchen", KEYS[1], NOW)
    with pytest.raises(ConfigError, match="is enrolled already, as kitchen"):
        devices.add("cellar", KEYS[0], NOW)
    devices.revoke("kitchen", NOW)
    with pytest.raises(ConfigError, match="was revoked on 2026-11-30"):
        devices.add("kitchen", KEYS[0], NOW)
    assert devices.add("kitchen", KEYS[1], NOW).public_key == KEYS[1]
    with pytest.raises(ConfigError, match="did you mean kitchen"):
        devices.revoke("kitchn", NOW)


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    content["devices"][1] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "kitchen"}, "two devices have the name kitchen"),
        ({"public_key": KEYS[0]}, "two devices have the public_key ecdsa"),
        (
            {"public_key": KEYS[0] + " with a comment", "revoked": "2026-11-30T12:00:00Z"},
            "two devices have the public_key",
        ),
        ({"node": 7}, "two devices have the node 7"),
        ({"node": 0}, "node is 0; expected one of Flower's numbers"),
        ({"node": -7}, "node is -7"),
        ({"node": 1 << 64}, "node is 18446744073709551616"),
        ({"node": 10**400}, "node is 1000"),
        ({"node": 7.0}, "node is 7.0"),
        ({"node": True}, "node is True"),
    ],
)
def test_a_node_a_name_or_a_key_that_two_devices_have_or_none_can_have_is_refused(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    path = tmp_path / "devices.json"
    with changing(path) as devices:
        devices.put(replace(devices.add("kitchen", KEYS[0], NOW), node=7))
        devices.add("cellar", KEYS[1], NOW)
    _edit(path, node=(1 << 64) - 1)
    assert [entry.node for entry in read_devices(path).entries] == [7, (1 << 64) - 1]
    _edit(path, **changes)
    with pytest.raises(ConfigError, match=rf"devices\.json: {told}"):
        read_devices(path)


def test_a_node_and_a_name_of_a_revoked_device_may_be_anothers(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    with changing(path) as devices:
        devices.put(replace(devices.add("kitchen", KEYS[0], NOW), node=7))
        devices.revoke("kitchen", NOW)
        devices.put(replace(devices.add("kitchen", KEYS[1], NOW), node=7))
    assert [entry.public_key for entry in read_devices(path).current] == [KEYS[1]]


steps = st.tuples(st.sampled_from(["add", "revoke"]), st.sampled_from(["a", "b", "c"]), st.sampled_from(KEYS))


@settings(deadline=None)
@given(st.lists(steps, max_size=20))
def test_whatever_is_done_names_and_keys_stay_one_to_one(done: list[tuple[str, str, str]]) -> None:
    devices = Devices(Path("x"))
    revoked: set[str] = set()
    for what, name, key in done:
        try:
            if what == "add":
                devices.add(name, key, NOW)
                assert key not in revoked
            else:
                revoked.add(devices.revoke(name, NOW).public_key)
        except ConfigError:
            pass
        names = [entry.name for entry in devices.current]
        keys = [entry.public_key for entry in devices.entries]
        assert len(names) == len(set(names))
        assert len(keys) == len(set(keys))


def test_two_that_enrol_at_once_lose_nobody(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"

    def enrol(number: int) -> None:
        with changing(path) as devices:
            devices.add(f"device-{number}", KEYS[number], NOW)

    threads = [threading.Thread(target=enrol, args=(number,)) for number in range(len(KEYS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_devices(path).current) == len(KEYS)


ENTRY = {"name": "a", "public_key": KEYS[0], "node": None, "enrolled": "", "revoked": ""}


@pytest.mark.parametrize(
    "content",
    [
        [], {}, {"format": "x", "devices": []}, {"format": "fedlora-devices-1", "devices": {}},
        {"format": "fedlora-devices-1", "devices": [{}]},
        {"format": "fedlora-devices-1", "devices": [ENTRY | {"node": "1"}]},
        {"format": "fedlora-devices-1", "devices": [ENTRY | {"node": True}]},
        {"format": "fedlora-devices-1", "devices": [ENTRY | {"name": "../a"}]},
        {"format": "fedlora-devices-1", "devices": [ENTRY | {"public_key": "x"}]},
        {"format": "fedlora-devices-1", "devices": [ENTRY | {"more": ""}]},
    ],
)  # fmt: skip
def test_another_content_is_refused_by_its_place(tmp_path: Path, content: object) -> None:
    (tmp_path / "devices.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_devices(tmp_path / "devices.json")


def enrolled(path: Path, name: str, key: str, node: int) -> None:
    with changing(path) as devices:
        entry = devices.add(name, key, NOW)
        devices.put(type(entry)(name=name, public_key=key, node=node, enrolled=entry.enrolled))


def test_the_roll_knows_who_comes_and_goes_while_it_is_used(tmp_path: Path) -> None:
    path, node = tmp_path / "devices.json", (1 << 63) + 5
    enrolled(path, "kitchen", KEYS[0], node)
    roll = Roll(path)
    assert (roll.name_of(node), roll.name_of(node + 1)) == ("kitchen", None)
    enrolled(path, "cellar", KEYS[1], node + 1)
    assert roll.name_of(node + 1) == "cellar"
    with changing(path) as devices:
        devices.revoke("kitchen", NOW)
    assert (roll.name_of(node), roll.name_of(node + 1)) == (None, "cellar")


def test_a_run_without_a_fleet_has_no_roll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert roll_of_environment() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere.json"))
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        roll_of_environment()
