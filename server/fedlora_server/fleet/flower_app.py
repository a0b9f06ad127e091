"""The Flower app of a fleet: a pyproject.toml that names the installed components, built and signed by the server's key.

A SuperNode that is given the key's public half (`--trusted-entities`) runs no other app, whoever reaches SuperLink's
Control API. Flower has signatures from its Hub alone; SuperLink keeps them beside the app, and starts a run of an app that
it keeps: that is where ours goes in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from fedlora.config.run import RunConfig, Scalar
from fedlora.errors import ConfigError
from fedlora.files.atomic import whole_file, write_text
from fedlora.files.bounded import read_bounded

from fedlora_server.fleet.settings import FleetSettings

APP = "@fedlora/fedlora-fleet"
_MAX_BYTES = 1 << 16
_PYPROJECT = """\
# The thin Flower app of this fleet: it names the installed components. fedlora server run writes and signs it.
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedlora-fleet"
version = "1.0.0"
description = "Federated LoRA on a quantized base"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
bypass-selection = true

[tool.flwr.app]
publisher = "fedlora"

[tool.flwr.app.components]
serverapp = "fedlora_server.app:app"
clientapp = "fedlora_client.app:app"

[tool.flwr.app.config]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedApp:
    """An app as Flower keeps it: its archive, the digest over it, and who signed it."""

    content: bytes
    digest: str
    verifications: dict[str, str]


def app_config() -> dict[str, Scalar]:
    """Every key that a run of the app may change, with its default."""
    return {key: value for key, value in RunConfig().flat().items() if not key.startswith("simulation.")}


def write_app(folder: Path) -> None:
    """Write the app's pyproject.toml."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in app_config().items()]
    write_text(folder / "pyproject.toml", _PYPROJECT + "\n".join(lines) + "\n")


def make_signing_key(path: Path) -> None:
    """Write an Ed25519 key in OpenSSH's format, for its owner alone, and its public half beside it."""
    key = ed25519.Ed25519PrivateKey.generate()
    with whole_file(path, is_private=True) as aside:
        aside.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
    write_text(path.with_suffix(".pub"), _line(key.public_key()) + "\n")


def trusted_entities(settings: FleetSettings) -> dict[str, str]:
    """{id: public key} of who signs the fleet's app, for its devices."""
    path = settings.at("app", "signing_key.pub")
    try:
        line = read_bounded(path, _MAX_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; expected the key that signs the fleet's app"
        ) from None
    return {_identity(line): line}


def signed_app(settings: FleetSettings, now_s: int) -> SignedApp:
    """The app as it stands in the folder, signed by the fleet's key. Raises ConfigError where the key is not there."""
    from flwr.cli.build import build_fab_from_files

    content, _ = build_fab_from_files({"pyproject.toml": settings.at("app", "pyproject.toml").read_bytes()})
    digest, (identity, _) = hashlib.sha256(content), next(iter(trusted_entities(settings).items()))
    signature = _signing_key(settings.at("app", "signing_key")).sign(now_s.to_bytes(8, "big") + digest.digest())
    record = {"signed_at": now_s, "signature": base64.urlsafe_b64encode(signature).decode().rstrip("=")}
    # "valid_license" is SuperLink's word for: what stands here are signatures.
    verifications = {"valid_license": "Valid", identity: json.dumps(record)}
    return SignedApp(content=content, digest=digest.hexdigest(), verifications=verifications)


def store_app(settings: FleetSettings, app: SignedApp) -> None:
    """Put the app into SuperLink's database, which SuperLink need not be running for."""
    from flwr.common.constant import NOOP_FLWR_AID
    from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.fab import Fab
    from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories

    _, factory = get_objectstore_linkstate_factories(str(settings.at("superlink.db")), get_federation_manager())
    factory.state().store_app(
        fab=Fab(app.digest, app.content, app.verifications),
        federation_id=NOOP_FEDERATION_ID,
        app_id=APP,
        app_type=TaskType.SERVER_APP,
        added_by=NOOP_FLWR_AID,
    )


def _signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    try:
        key = serialization.load_ssh_private_key(read_bounded(path, _MAX_BYTES), None)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; expected the key that signs the fleet's app"
        ) from None
    except ValueError:
        raise ConfigError(
            f"{path}: not a key in OpenSSH's format; expected the one that signs the fleet's app"
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path}: only an Ed25519 key signs apps")
    return key


def _identity(line: str) -> str:
    return "fpk_" + hashlib.sha256(line.encode()).hexdigest()[:32]


def _line(key: ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
