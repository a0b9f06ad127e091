"""How a device becomes one of a fleet: its key, and a `device.toml` from the bundle that its server gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from fedlora.base.pack import EMBEDDED, open_pack
from fedlora.errors import BundleError, ConfigError
from fedlora.files.atomic import whole_file
from fedlora.files.temporary import own_folder
from fedlora.fleet.bundle import Bundle, read_bundle
from fedlora.fleet.names import check_device_name
from fedlora.identity.keys import PublicKey, SigningKey

from fedlora_client.service.config import FILE
from fedlora_client.service.system import GROUP, SOCKET, STATE

KEY, PUBLIC, AUTHORITY, TRUSTED = "device.key", "device.key.pub", "fleet.crt", "trusted.yaml"
IDENTITY, IDENTITY_PUBLIC, SERVER = "identity.key", "identity.key.pub", "server.pub"


def make_key(folder: Path) -> str:
    """The line of the device's public key: of a new pair in the folder, or of the one that is there.

    Raises ConfigError where half a pair is.
    """
    private, public = folder / KEY, folder / PUBLIC
    if public.is_file() and private.is_file():
        return public.read_text(encoding="utf-8").strip()
    if private.exists() or public.exists():
        raise ConfigError(
            f"{folder}: only half of the pair {KEY} and {PUBLIC} is there; remove it, or put back the other"
        )
    # Here: only this needs it, and it is Flower that brings it.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    _write(private, text, is_private=True)
    _write(public, line + "\n")
    return line


def make_identity(folder: Path) -> Path:
    """The public half of the pair by which the device signs: of a new pair in the folder, or of the one that is there."""
    private, public = folder / IDENTITY, folder / IDENTITY_PUBLIC
    if not private.exists():
        SigningKey.generate().write(private)
    SigningKey.read(private).public.write(public)
    return public


def join(
    bundle_path: Path,
    folder: Path,
    *,
    base: str,
    data: Path,
    query: str = "",
    name: str = "",
    is_system: bool = False,
    now: datetime | None = None,
) -> Path:
    """Write a device's folder from a bundle; returns its `device.toml`. Raises FedloraError, with nothing written.

    That of a system's service says where systemd's units have their files.
    """
    bundle = read_bundle(bundle_path)
    if bundle.is_expired(now or datetime.now(UTC)):
        raise BundleError(
            f"{bundle_path}: expired on {bundle.expires}, by this device's clock; set the clock, or take a new bundle from "
            "fedlora server enrol"
        )
    device_name = check_device_name(name) if name else bundle.name
    path = folder / FILE
    if path.exists():
        raise ConfigError(f"{path} exists already; name another --dir, or remove it to join anew")
    if not data.exists():
        raise ConfigError(f"{data}: there is no such file or folder; name the data that the device trains on")
    pack = open_pack(base)
    if bundle.base_fingerprint and pack.fingerprint != bundle.base_fingerprint:
        raise ConfigError(
            f"{base}: its fingerprint is {pack.fingerprint:.16}, the fleet's base is {bundle.base_fingerprint:.16}; give "
            "--base the pack that the fleet trains"
        )
    private = _private_key(bundle, folder)
    _check_identity(bundle, folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o755 if is_system else 0o700)
    if private is not None:
        _write(folder / KEY, private, is_private=True)
        _write(folder / PUBLIC, bundle.public_key + "\n")
    if bundle.identity_key is not None:
        _write(folder / IDENTITY, bundle.identity_key, is_private=True)
    if bundle.identity is not None and bundle.server_identity is not None:
        _write(folder / IDENTITY_PUBLIC, bundle.identity)
        _write(folder / SERVER, bundle.server_identity)
    _write(folder / AUTHORITY, bundle.ca_certificate)
    if bundle.trusted_entities:
        _write(folder / TRUSTED, _yaml(bundle.trusted_entities))
    text = _toml(
        bundle, device_name, base if base == EMBEDDED else str(Path(base).absolute()), data.absolute(), query, is_system
    )
    _write(path, text)
    return path


def _private_key(bundle: Bundle, folder: Path) -> str | None:
    """The bundle's; None where the device has made the right one itself. Raises BundleError where there is no right one."""
    if bundle.private_key is not None:
        if (folder / KEY).exists() and (folder / KEY).read_text(encoding="utf-8") != bundle.private_key:
            raise ConfigError(f"{folder / KEY} is another key than the bundle's; name another --dir, or remove it")
        return bundle.private_key
    public = folder / PUBLIC
    mine = public.read_text(encoding="utf-8").split()[:2] if public.is_file() and (folder / KEY).is_file() else []
    if mine != bundle.public_key.split()[:2]:
        raise BundleError(
            f"{folder}: the bundle brings no key, and the device's own is not the one that was enrolled; give --dir the "
            "folder in which fedlora device key made it"
        )
    return None


def _check_identity(bundle: Bundle, folder: Path) -> None:
    """Raise FedloraError unless the pair that the server knows is the bundle's, or the one in the folder."""
    if bundle.identity is None or bundle.server_identity is None:
        return
    known = PublicKey.from_pem(bundle.identity, "identity")
    PublicKey.from_pem(bundle.server_identity, "server_identity")
    private = folder / IDENTITY
    if bundle.identity_key is None:
        if not private.is_file() or SigningKey.read(private).public != known:
            raise BundleError(
                f"{folder}: the bundle brings no {IDENTITY}, and the device's own is not the one that was enrolled; give "
                "--dir the folder in which fedlora device key made it"
            )
        return
    if private.exists() and private.read_text(encoding="utf-8") != bundle.identity_key:
        raise ConfigError(f"{private} is another pair than the bundle's; name another --dir, or remove it")
    with own_folder("bundle") as aside:
        _write(aside / IDENTITY, bundle.identity_key, is_private=True)
        if SigningKey.read(aside / IDENTITY).public != known:
            raise BundleError("identity_key: it belongs to another identity; expected the two halves of one pair")


def _toml(bundle: Bundle, name: str, base: str, data: Path, query: str, is_system: bool) -> str:
    trusted = f"trusted_entities = {json.dumps(TRUSTED)}\n" if bundle.trusted_entities else ""
    if bundle.identity is not None and bundle.server_identity is not None:
        trusted += f"identity = {json.dumps(IDENTITY)}\nserver_identity = {json.dumps(SERVER)}\n"
    places = f'state = "{STATE}"\nsocket = "{SOCKET}"\ngroup = "{GROUP}"\n' if is_system else ""
    asked = f"query = {json.dumps(query)}\n" if query else ""
    return (
        f"[device]\nname = {json.dumps(name)}\nbase = {json.dumps(base)}\n{places}\n"
        f"[data]\nsource = {json.dumps(str(data))}\n{asked}\n"
        f"[server]\nsuperlink = {json.dumps(bundle.superlink)}\ncertificates = {json.dumps(AUTHORITY)}\n"
        f"key = {json.dumps(KEY)}\n{trusted}\n"
        "# What the device allows; docs/device.md has all keys.\n[policy]\n"
        + (f"bases = [{json.dumps(bundle.base_fingerprint)}]\n" if bundle.base_fingerprint else "")
    )


def _yaml(entities: Mapping[str, str]) -> str:
    """JSON is YAML."""
    return json.dumps(dict(entities), indent=2) + "\n"


def _write(path: Path, text: str, *, is_private: bool = False) -> None:
    with whole_file(path, is_private=is_private) as aside:
        aside.write_text(text, encoding="utf-8")
