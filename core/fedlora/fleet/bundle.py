"""The bundle: one file that makes a device of a fleet. `fedlora server enrol` writes it, `fedlora device join` takes it.

    {"format": "fedlora-device-1", "name": "kitchen", "superlink": "fleet.example.org:8443",
     "ca_certificate": "-----BEGIN CERTIFICATE-----...", "public_key": "ecdsa-sha2-nistp384 AAAA...",
     "private_key": "-----BEGIN OPENSSH PRIVATE KEY-----...", "base_fingerprint": "...",
     "trusted_entities": {"fpk_...": "ssh-ed25519 AAAA..."}, "issued": "2026-11-30T12:00:00Z", "expires": "..."}

`private_key` is absent where the device made its own; whoever holds a bundle with one is that device. A fleet that signs
gives `server_identity`, by which the device knows instructions, and the device's own pair, `identity_key` and `identity`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlora.errors import BundleError
from fedlora.files.atomic import whole_file
from fedlora.files.documents import read_object
from fedlora.fleet.keys import (
    PRIVATE,
    PUBLIC,
    check_certificates,
    check_pair,
    check_private_key,
    check_public_key,
    check_trusted_key,
)
from fedlora.fleet.names import check_device_name, split_address
from fedlora.nearest import hint

FORMAT = "fedlora-device-1"
MAX_BYTES = 1 << 16
MAX_TRUSTED = 16
_EXPECTED = "a bundle that fedlora server enrol wrote"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
_TRUSTED_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a device needs to belong to a fleet. Raises BundleError, naming the field, for one that it could not use."""

    name: str
    superlink: str  # HOST:PORT of the Fleet API, TLS
    ca_certificate: str  # PEM; the server's certificate must be signed by it
    public_key: str  # "ecdsa-sha2-nistp384 AAAA...", as the server knows the device
    private_key: str | None = field(default=None, repr=False)  # OpenSSH's format; None where the device has its own
    base_fingerprint: str | None = None  # of the base pack that the fleet trains on
    server_identity: str | None = (
        None  # PEM, the public halves of the pair that signs instructions; None: none are signed
    )
    identity: str | None = None  # PEM, of the pair that signs the device's answers, as the server knows it
    identity_key: str | None = field(
        default=None, repr=False
    )  # PEM, its private halves; None where the device has its own
    trusted_entities: Mapping[str, str] = field(default_factory=dict)  # {id: "ssh-ed25519 AAAA..."}; whose apps may run
    issued: str  # UTC, as 2026-11-30T12:00:00Z
    expires: str  # the same; from then on the fleet's certificates are no longer valid

    def __post_init__(self) -> None:
        check_device_name(self.name)
        split_address(self.superlink)
        check_certificates(self.ca_certificate)
        object.__setattr__(self, "public_key", check_public_key(self.public_key))
        if self.private_key is not None:
            check_private_key(self.private_key, self.public_key)
        for name, label in (("server_identity", PUBLIC), ("identity", PUBLIC), ("identity_key", PRIVATE)):
            if (pair := getattr(self, name)) is not None:
                check_pair(pair, label, name)
        if self.identity_key is not None and self.identity is None:
            raise BundleError("identity: it is missing, and identity_key is there; expected both halves of the pair")
        if self.base_fingerprint is not None and not _FINGERPRINT.match(self.base_fingerprint):
            raise BundleError(
                f"base_fingerprint: {self.base_fingerprint!r:.80}; expected 64 hexadecimal digits, as of fedlora inspect"
            )
        if len(self.trusted_entities) > MAX_TRUSTED:
            raise BundleError(f"trusted_entities: {len(self.trusted_entities)} keys; at most {MAX_TRUSTED} are taken")
        for identity, key in self.trusted_entities.items():
            if not _TRUSTED_ID.match(identity):
                raise BundleError(
                    f"trusted_entities: {identity!r:.80}; an id is 1 to 128 letters, digits and '_.:-' only"
                )
            check_trusted_key(key)
        if moment(self.issued, "issued") >= moment(self.expires, "expires"):
            raise BundleError(f"expires: {self.expires}; it must be after issued, {self.issued}")

    def is_expired(self, now: datetime) -> bool:
        """Whether the fleet's certificates are no longer valid at `now`, which has a time zone."""
        return now >= moment(self.expires, "expires")


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file. Raises BundleError, with the path and the field, for anything else."""
    content = read_object(path, BundleError, _EXPECTED, max_bytes=MAX_BYTES)
    given = content.pop("format", None)
    if given != FORMAT:
        raise BundleError(f"{path}: format {given!r:.60}; expected {FORMAT!r}, {_EXPECTED}")
    known = {each.name: each for each in fields(Bundle)}
    for key, value in content.items():
        if key not in known:
            near = hint(key, known, f"known fields: {', '.join(known)}", likeness=0.5)
            raise BundleError(f"{path}: unknown field {key!r:.60}; {near}; expected {_EXPECTED}")
        _check_type(key, value, path)
    for name, each in known.items():
        is_optional = each.default is not MISSING or each.default_factory is not MISSING
        if name not in content and not is_optional:
            raise BundleError(f"{path}: {name} is missing; expected {_EXPECTED}, whole")
    try:
        return Bundle(**content)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def write_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle, whole, for its owner alone (mode 0600). Raises BundleError where something lies at `path` already."""
    if os.path.lexists(path):
        raise BundleError(f"{path} exists already, and may be the only copy of a device's key; name another file")
    content: dict[str, Any] = {"format": FORMAT}
    for each in fields(bundle):
        value = getattr(bundle, each.name)
        if value is not None and value != {}:
            content[each.name] = dict(value) if isinstance(value, Mapping) else value
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise BundleError(f"{path}: the bundle takes {len(text.encode())} bytes; at most {MAX_BYTES} are read")
    with whole_file(path, is_private=True) as aside:
        aside.write_text(text, encoding="utf-8")


def moment(text: str, where: str) -> datetime:
    """A moment as a bundle writes it, with its time zone. Raises BundleError for any other text."""
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except (ValueError, TypeError):
        raise BundleError(f"{where}: {text!r:.60}; expected a time in UTC, as 2026-11-30T12:00:00Z") from None


def written(time: datetime) -> str:
    """A moment with a time zone, as a bundle writes it."""
    return time.astimezone(UTC).strftime(_TIME)


def _check_type(key: str, value: object, path: Path) -> None:
    if key == "trusted_entities":
        if not (isinstance(value, dict) and all(isinstance(each, str) for each in value.values())):
            raise BundleError(f"{path}: {key} must be an object of texts: an id, and the line of an ssh-ed25519 key")
    elif not isinstance(value, str):
        raise BundleError(f"{path}: {key} must be a text, got {type(value).__name__}")
