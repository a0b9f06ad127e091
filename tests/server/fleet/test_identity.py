"""A fleet's pair: made with the fleet, renewed under the one before; counters that only rise; devices that are rekeyed."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fedlora.errors import ConfigError, IdentityError
from fedlora.fleet.bundle import read_bundle
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.rotation import reached, rotated
from fedlora_server.fleet.devices import Devices, changing, read_devices
from fedlora_server.fleet.enrolment import enrol_device, rekey_device
from fedlora_server.fleet.identity import Counter, make_identity, public_identity, read_signer, rotate_identity, signs
from fedlora_server.fleet.roll import Roll
from fedlora_server.fleet.settings import FleetSettings

from tests.tiny.bundles import device_key

NOW = datetime(2026, 12, 1, tzinfo=UTC)
AT = "2026-12-01T00:00:00Z"


def test_a_new_fleet_signs_with_a_pair_of_its_own(fleet: FleetSettings) -> None:
    signer = read_signer(fleet.folder)
    assert signer is not None
    assert signer.key.public.to_pem() == public_identity(fleet.folder)
    assert stat.S_IMODE(fleet.at("identity", "server.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        make_identity(fleet.folder)


def test_a_fleet_of_an_earlier_version_signs_nothing_until_it_is_given_a_pair(fleet: FleetSettings) -> None:
    for path in sorted(fleet.at("identity").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert not signs(fleet.folder)
    assert read_signer(fleet.folder) is None
    assert public_identity(fleet.folder) == ""
    entry = enrol_device(fleet, "kitchen", None, fleet.at("kitchen.json"), NOW)
    bundle = read_bundle(fleet.at("kitchen.json"))
    assert (entry.identity, bundle.identity, bundle.server_identity) == ("", None, None)
    assert "identity" not in fleet.at("devices.json").read_text()
    with pytest.raises(ConfigError, match="this fleet signs nothing"):
        enrol_device(fleet, "cellar", None, fleet.at("cellar.json"), NOW, fleet.at("any.pub"))
    with pytest.raises(ConfigError, match="this fleet signs nothing yet"):
        rotate_identity(fleet.folder, NOW)
    make_identity(fleet.folder)
    assert signs(fleet.folder)


def test_a_chain_leads_from_the_first_pair_to_the_one_that_signs(fleet: FleetSettings) -> None:
    first = PublicKey.from_pem(public_identity(fleet.folder))
    for _ in range(2):
        rotate_identity(fleet.folder, NOW)
    signer = read_signer(fleet.folder)
    assert signer is not None
    assert len(signer.rotated) == 2
    assert reached(first, signer.rotated)[-1] == signer.key.public == PublicKey.from_pem(public_identity(fleet.folder))
    assert not fleet.at("identity", "server.key.next").exists()


def test_a_rotation_that_was_cut_off_is_done_again(fleet: FleetSettings) -> None:
    first = PublicKey.from_pem(public_identity(fleet.folder))
    SigningKey.generate().write(fleet.at("identity", "server.key.next"))
    new = rotate_identity(fleet.folder, NOW)
    signer = read_signer(fleet.folder)
    assert signer is not None
    assert signer.key.public == new
    assert new in reached(first, signer.rotated)


def test_counters_rise_over_restarts_and_clocks_that_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, numbers = tmp_path / "counter", []
    for now_s in (2_000_000_000, 2_000_000_000, 1_000, 2_000_000_100):
        monkeypatch.setattr(time, "time_ns", lambda now_s=now_s: now_s * 10**9)
        counter = Counter(path)
        numbers += [counter.next() for _ in range(3)]
    assert numbers == sorted(set(numbers))
    assert int(path.read_text()) > numbers[-1]
    monkeypatch.setattr(time, "time_ns", lambda: 3_000_000_000 * 10**9)
    written = path.stat().st_mtime_ns
    assert counter.next() == 3_000_000_000 * 10**6
    assert path.stat().st_mtime_ns != written
    written = path.stat().st_mtime_ns
    assert counter.next() == 3_000_000_000 * 10**6 + 1
    assert path.stat().st_mtime_ns == written  # not written for each


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 30, "१२"])
def test_a_counter_that_is_damaged_is_not_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "counter").write_text(text)
    with pytest.raises(ConfigError, match="put back the file"):
        Counter(tmp_path / "counter").next()


def test_enrolment_carries_both_public_keys(fleet: FleetSettings) -> None:
    entry = enrol_device(fleet, "kitchen", None, fleet.at("kitchen.json"), NOW)
    bundle = read_bundle(fleet.at("kitchen.json"))
    assert (bundle.identity, bundle.server_identity) == (entry.identity, public_identity(fleet.folder))
    (own := fleet.at("own.pem")).write_text(bundle.identity_key or "")
    own.chmod(0o600)
    assert SigningKey.read(own).public.to_pem() == entry.identity


def test_a_device_that_makes_its_own_pair_keeps_it(fleet: FleetSettings) -> None:
    fleet.at("key.pub").write_text(device_key()[1])
    own = SigningKey.generate()
    own.public.write(fleet.at("identity.pub"))
    with pytest.raises(ConfigError, match="give --public-key"):
        enrol_device(fleet, "kitchen", None, fleet.at("kitchen.json"), NOW, fleet.at("identity.pub"))
    entry = enrol_device(fleet, "kitchen", fleet.at("key.pub"), fleet.at("kitchen.json"), NOW, fleet.at("identity.pub"))
    bundle = read_bundle(fleet.at("kitchen.json"))
    assert (entry.identity, bundle.identity_key) == (own.public.to_pem(), None)
    fleet.at("other.pub").write_text(device_key()[1])
    with pytest.raises(ConfigError, match="is or was that of kitchen"):
        enrol_device(fleet, "cellar", fleet.at("other.pub"), fleet.at("cellar.json"), NOW, fleet.at("identity.pub"))
    assert not fleet.at("cellar.json").exists()


def test_a_device_that_brings_no_pair_signs_nothing_and_looks_at_no_signature(fleet: FleetSettings) -> None:
    fleet.at("key.pub").write_text(device_key()[1])
    entry = enrol_device(fleet, "kitchen", fleet.at("key.pub"), fleet.at("kitchen.json"), NOW)
    assert (entry.identity, read_bundle(fleet.at("kitchen.json")).server_identity) == ("", None)


def test_a_rotated_pair_of_a_device_is_taken_where_the_one_before_signed_it(tmp_path: Path) -> None:
    old, new, stranger = (SigningKey.generate() for _ in range(3))
    path = tmp_path / "devices.json"
    with changing(path) as devices:
        devices.put(replace(devices.add("kitchen", device_key()[1], NOW, old.public.to_pem()), node=7))
        devices.add("cellar", device_key()[1], NOW)
    roll = Roll(path)
    assert roll.key_of(7) == old.public
    with changing(path) as devices:
        devices.rekey("kitchen", rotated(old, new.public, AT), "here")
    assert roll.key_of(7) == new.public
    assert read_devices(path).named("kitchen").before == (old.public.keyid,)
    with changing(path) as devices:
        for statement in (rotated(old, stranger.public, AT), rotated(stranger, stranger.public, AT), b"{}"):
            with pytest.raises(IdentityError):
                devices.rekey("kitchen", statement, "here")
        with pytest.raises(ConfigError, match="is or was a device's already"):
            devices.rekey("kitchen", rotated(new, old.public, AT), "here")
        with pytest.raises(ConfigError, match="without a pair that signs"):
            devices.rekey("cellar", rotated(old, new.public, AT), "here")
        with pytest.raises(ConfigError, match="is or was that of kitchen"):
            devices.add("attic", device_key()[1], NOW, old.public.to_pem())


def test_a_statement_that_is_not_there_is_told(fleet: FleetSettings) -> None:
    with pytest.raises(ConfigError, match="fedlora key rotate"):
        rekey_device(fleet, "kitchen", fleet.at("nowhere.json"))


@pytest.mark.parametrize(
    "name", ["k\u0456tchen", "\uff4bitchen", "kitchen\u200b", "Kitchen", "KITCHEN", "kitche\u0301n"]
)
def test_a_name_that_looks_like_one_that_is_enrolled_is_refused(tmp_path: Path, name: str) -> None:
    devices = Devices(tmp_path / "devices.json")
    devices.add("kitchen", device_key()[1], NOW)
    with pytest.raises(ConfigError, match=r"is no name of a device|differs in case alone"):
        devices.add(name, device_key()[1], NOW)
    devices.revoke("kitchen", NOW)
    if name.isascii():
        assert devices.add(name, device_key()[1], NOW).name == name


@pytest.mark.parametrize("change", [{"identity": "x"}, {"before": "x"}, {"before": [1]}, {"identity": 1}])
def test_another_content_of_an_entry_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "devices.json"
    with changing(path) as devices:
        devices.add("kitchen", device_key()[1], NOW, SigningKey.generate().public.to_pem())
    content = json.loads(path.read_text())
    content["devices"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"devices\.json"):
        read_devices(path)
