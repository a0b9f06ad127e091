"""devices.json: which name is which key, and which node of Flower's. A name belongs to its key until it is revoked."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedlora.errors import BundleError, ConfigError, IdentityError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.fleet.bundle import written
from fedlora.fleet.keys import check_public_key, fingerprint_of
from fedlora.fleet.names import check_device_name
from fedlora.identity.keys import PublicKey
from fedlora.identity.rotation import read_rotated
from fedlora.nearest import hint

FORMAT = "fedlora-devices-1"
_MAX_BYTES = 1 << 24
_EXPECTED = "the devices of a fleet, as fedlora server enrol writes them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """One device of the fleet, or one that was."""

    name: str
    public_key: str
    node: int | None = None  # Flower's; None until SuperLink knows the key
    enrolled: str = ""  # UTC
    revoked: str = ""  # UTC; empty for a device of the fleet
    identity: str = ""  # PEM, the public half of the pair that signs its answers; empty where it signs none
    before: tuple[str, ...] = ()  # ids of pairs that it had before, which count no more


class Devices:
    """Every device that was enrolled, in order; those that were revoked stay, so that their keys never count again."""

    def __init__(self, path: Path, entries: tuple[Enrolled, ...] = ()) -> None:
        self.path, self.entries = path, list(entries)

    @property
    def current(self) -> list[Enrolled]:
        """The devices of the fleet."""
        return [entry for entry in self.entries if not entry.revoked]

    def named(self, name: str) -> Enrolled:
        """The device of that name. Raises ConfigError where the fleet has none."""
        for entry in self.current:
            if entry.name == name:
                return entry
        known = [entry.name for entry in self.current]
        raise ConfigError(f"{name!r:.80}: no device of the fleet; {hint(name, known, f'there is {_list(known)}')}")

    def add(self, name: str, public_key: str, now: datetime, identity: str = "") -> Enrolled:
        """Enrol a device. Raises ConfigError where the name is taken, or a key is or was another's."""
        try:
            check_device_name(name)
        except BundleError as error:
            raise ConfigError(str(error)) from None
        for entry in self.entries:
            if entry.public_key == public_key:
                what = f"was revoked on {entry.revoked[:10]}" if entry.revoked else "is enrolled already"
                raise ConfigError(
                    f"{name}: the key {fingerprint_of(public_key)} {what}, as {entry.name}; give the device a new key"
                )
            if identity and _id_of(identity) in (_id_of(entry.identity), *entry.before):
                raise ConfigError(
                    f"{name}: the pair {_id_of(identity):.16} is or was that of {entry.name}; give the device a new one"
                )
            if entry.name.casefold() == name.casefold() and entry.name != name and not entry.revoked:
                raise ConfigError(
                    f"{name}: {entry.name} is enrolled, which differs in case alone; take a name that nobody mistakes"
                )
            if entry.name == name and not entry.revoked:
                raise ConfigError(
                    f"{name} is enrolled already, with the key {fingerprint_of(entry.public_key)}; take another name, "
                    f"or revoke it first: fedlora server revoke {name}"
                )
        entry = Enrolled(name=name, public_key=public_key, enrolled=written(now), identity=identity)
        self.entries.append(entry)
        return entry

    def revoke(self, name: str, now: datetime) -> Enrolled:
        """Take a device out of the fleet. Raises ConfigError where there is none."""
        entry = self.named(name)
        return self.put(replace(entry, revoked=written(now)))

    def rekey(self, name: str, statement: bytes, where: str) -> Enrolled:
        """Give a device the pair that the one before has signed. Raises ConfigError, or IdentityError for no such."""
        entry = self.named(name)
        if not entry.identity:
            raise ConfigError(f"{name} was enrolled without a pair that signs; revoke it, and enrol it with one")
        old = PublicKey.from_pem(entry.identity, f"{self.path}: {name}")
        new = read_rotated(statement, [old], where)
        if any(new.keyid in (_id_of(each.identity), *each.before) for each in self.entries):
            raise ConfigError(f"{where}: the pair {new.keyid:.16} is or was a device's already; expected a new one")
        return self.put(replace(entry, identity=new.to_pem(), before=(*entry.before, old.keyid)))

    def put(self, changed: Enrolled) -> Enrolled:
        """Replace the entry with that key."""
        place = next(i for i, entry in enumerate(self.entries) if entry.public_key == changed.public_key)
        self.entries[place] = changed
        return changed


def read_devices(path: Path) -> Devices:
    """The devices in a devices.json; none where there is no such file. Raises ConfigError for another content."""
    if not os.path.lexists(path):
        return Devices(path)
    content = read_object(path, ConfigError, _EXPECTED, max_bytes=_MAX_BYTES)
    listed = content.get("devices")
    if content.get("format") != FORMAT or not isinstance(listed, list):
        raise ConfigError(f"{path}: format {content.get('format')!r:.40}; expected {FORMAT!r}, {_EXPECTED}")
    return Devices(path, tuple(_entry(each, path) for each in listed))


@contextmanager
def changing(path: Path) -> Iterator[Devices]:
    """The devices, to be changed: nobody else changes them meanwhile, and they are written when the block ends well."""
    lock = path.with_suffix(".lock")
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        devices = read_devices(path)
        before = list(devices.entries)
        yield devices
        if devices.entries != before:
            content = {"format": FORMAT, "devices": [_written(entry) for entry in devices.entries]}
            write_text(path, json.dumps(content, indent=2) + "\n")


_LATER: Mapping[str, Any] = {"identity": "", "before": ()}  # which earlier versions did not write


def _written(entry: Enrolled) -> dict[str, Any]:
    """An entry as it stands in the file, where a device without a pair is as it always was."""
    return {key: value for key, value in asdict(entry).items() if value != _LATER.get(key, _Absent)}


class _Absent:
    """Equal to nothing."""


def _id_of(identity: str) -> str:
    """The id of a pair, by its public half; "" of none."""
    return PublicKey.from_pem(identity).keyid if identity else ""


def _entry(value: Any, path: Path) -> Enrolled:
    kinds: Mapping[str, tuple[type, ...]] = {"node": (int, type(None)), "before": (list, tuple)}
    if isinstance(value, dict):
        value = {**_LATER, **value}
    if not isinstance(value, dict) or value.keys() != {each.name for each in fields(Enrolled)}:
        raise ConfigError(f"{path}: {str(value)[:80]!r}; expected {_EXPECTED}")
    for key, given in value.items():
        if type(given) not in kinds.get(key, (str,)):
            raise ConfigError(f"{path}: {key} is {given!r:.40}; expected {_EXPECTED}")
    try:
        check_device_name(value["name"])
        check_public_key(value["public_key"])
        _id_of(value["identity"])
    except (BundleError, IdentityError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not all(isinstance(each, str) for each in value["before"]):
        raise ConfigError(f"{path}: before must be a list of texts; expected {_EXPECTED}")
    return Enrolled(**value | {"before": tuple(value["before"])})


def _list(names: list[str], most: int = 8) -> str:
    if not names:
        return "none yet"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
