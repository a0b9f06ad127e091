"""Devices come into a fleet and leave it: devices.json, SuperLink and the bundle, in an order that can be cut anywhere."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from fedlora.base.pack import open_pack
from fedlora.errors import ConfigError, FedloraError, RunError
from fedlora.fleet.bundle import Bundle, write_bundle, written

from fedlora_server.fleet.authority import expiry
from fedlora_server.fleet.control import control_of, is_up
from fedlora_server.fleet.device_keys import make_device_key, read_public_key
from fedlora_server.fleet.devices import Enrolled, changing
from fedlora_server.fleet.flower_app import trusted_entities
from fedlora_server.fleet.registration import register_all
from fedlora_server.fleet.settings import FleetSettings


def enrol_device(
    settings: FleetSettings, name: str, public_key: Path | None, output: Path, now: datetime
) -> Enrolled:  # fmt: skip
    """Enrol a device and write its bundle; without a public key, with a key that is made here.

    Raises ConfigError or BundleError, and nothing has changed. Where SuperLink does not run, it is told when it starts.
    """
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists already, and may be the only copy of a device's key; name another with -o")
    private, public = (None, read_public_key(public_key)) if public_key else make_device_key()
    with changing(settings.at("devices.json")) as devices:
        entry = devices.add(name, public, now)
        bundle = Bundle(
            name=name,
            superlink=settings.address,
            ca_certificate=settings.at("tls", "ca.crt").read_text(encoding="ascii"),
            public_key=public,
            private_key=private,
            base_fingerprint=_fingerprint(settings),
            trusted_entities=trusted_entities(settings),
            issued=written(now),
            expires=written(expiry(settings.at("tls", "ca.crt"))),
        )
        write_bundle(bundle, output)
    tell_superlink(settings)
    with changing(settings.at("devices.json")) as devices:
        return devices.named(entry.name)


def revoke_device(settings: FleetSettings, name: str, now: datetime) -> bool:
    """Take a device out of the fleet; whether SuperLink knows. Its answers count no more in either case.

    Raises ConfigError where the fleet has no such device.
    """
    with changing(settings.at("devices.json")) as devices:
        devices.revoke(name, now)
    return tell_superlink(settings)


def tell_superlink(settings: FleetSettings) -> bool:
    """Let SuperLink's nodes follow devices.json now, if it runs; whether it does."""
    if not is_up(settings):
        return False
    try:
        with control_of(settings) as control, changing(settings.at("devices.json")) as devices:
            register_all(control, devices)
    except RunError:
        return False
    return True


def _fingerprint(settings: FleetSettings) -> str | None:
    """Of the base that the runs train; None where it does not lie on this machine."""
    try:
        return open_pack(str(settings.run.get("base", "nano"))).fingerprint
    except FedloraError:
        return None
