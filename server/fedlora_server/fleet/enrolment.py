"""Devices come into a fleet and leave it: devices.json, SuperLink and the bundle, in an order that can be cut anywhere."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from fedlora.base.pack import open_pack
from fedlora.errors import ConfigError, FedloraError, RunError
from fedlora.files.bounded import read_bounded
from fedlora.fleet.bundle import Bundle, write_bundle, written
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.rotation import MAX_BYTES

from fedlora_server.fleet.authority import expiry
from fedlora_server.fleet.control import control_of, is_up
from fedlora_server.fleet.device_keys import make_device_key, read_public_key
from fedlora_server.fleet.devices import Enrolled, changing
from fedlora_server.fleet.flower_app import trusted_entities
from fedlora_server.fleet.identity import public_identity, signs
from fedlora_server.fleet.registration import register_all
from fedlora_server.fleet.settings import FleetSettings


def enrol_device(
    settings: FleetSettings, name: str, public_key: Path | None, output: Path, now: datetime,
    identity: Path | None = None,
) -> Enrolled:  # fmt: skip
    """Enrol a device and write its bundle; without a public key, with keys that are made here.

    `identity` is the public half of the pair by which a device that makes its own keys signs. Without one it signs nothing,
    and takes unsigned instructions. Raises ConfigError or BundleError, and nothing has changed. Where SuperLink does not
    run, it is told when it starts.
    """
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists already, and may be the only copy of a device's key; name another with -o")
    private, public = (None, read_public_key(public_key)) if public_key else make_device_key()
    pair = _pair(settings, public_key, identity)
    with changing(settings.at("devices.json")) as devices:
        entry = devices.add(name, public, now, pair.public)
        bundle = Bundle(
            name=name,
            superlink=settings.address,
            ca_certificate=settings.at("tls", "ca.crt").read_text(encoding="ascii"),
            public_key=public,
            private_key=private,
            base_fingerprint=_fingerprint(settings),
            server_identity=public_identity(settings.folder) if pair.public else None,
            identity=pair.public or None,
            identity_key=pair.private,
            trusted_entities=trusted_entities(settings),
            issued=written(now),
            expires=written(expiry(settings.at("tls", "ca.crt"))),
        )
        write_bundle(bundle, output)
    tell_superlink(settings)
    with changing(settings.at("devices.json")) as devices:
        return devices.named(entry.name)


class _Pair(NamedTuple):
    """The pair by which a device signs, PEM: "" and None where it has none, None where it holds the private half."""

    public: str
    private: str | None = None


def _pair(settings: FleetSettings, public_key: Path | None, identity: Path | None) -> _Pair:
    """Made here, or brought by the device. Raises ConfigError."""
    if not signs(settings.folder):
        if identity is not None:
            raise ConfigError(
                f"{settings.folder}: this fleet signs nothing; make its pair first: fedlora server rotate --identity"
            )
        return _Pair("")
    if identity is not None:
        if public_key is None:
            raise ConfigError("--identity: the device's other key is needed too; give --public-key")
        return _Pair(PublicKey.read(identity).to_pem())
    if public_key is not None:
        return _Pair("")
    made = SigningKey.generate()
    return _Pair(made.public.to_pem(), made.to_pem().decode("ascii"))


def rekey_device(settings: FleetSettings, name: str, statement: Path) -> Enrolled:
    """Let a device sign with the pair that its pair before has signed. Raises ConfigError or IdentityError."""
    try:
        content = read_bounded(statement, MAX_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{statement}: cannot be read: {error.strerror}; expected what fedlora key rotate wrote"
        ) from None
    with changing(settings.at("devices.json")) as devices:
        return devices.rekey(name, content, str(statement))


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
