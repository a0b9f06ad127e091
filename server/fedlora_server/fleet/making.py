"""A new fleet's folder, whole or not at all."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from fedlora.errors import ConfigError
from fedlora.files.atomic import whole_directory, whole_file, write_text

from fedlora_server.fleet.authority import make_authority, make_server_certificate
from fedlora_server.fleet.flower_app import make_signing_key, write_app
from fedlora_server.fleet.identity import make_identity
from fedlora_server.fleet.nginx import nginx_text
from fedlora_server.fleet.settings import SETTINGS, FleetSettings, settings_text

_CONFIG = """\
# Flower's own commands on this fleet: FLWR_HOME={home} flwr list
[superlink]
default = "fleet"

[superlink.fleet]
address = "{address}"
root-certificates = "{ca}"
"""


def make_fleet(settings: FleetSettings, now: datetime | None = None) -> None:
    """Make the folder of a fleet's server. Raises ConfigError where it exists already."""
    now = now or datetime.now(UTC)
    folder = settings.folder
    if folder.exists():
        raise ConfigError(f"{folder} exists already, and may hold a fleet's only keys; name another DIR")
    with whole_directory(folder) as aside:
        for name in ("tls", "app", "runs", "logs", "flower"):
            (aside / name).mkdir()
        make_authority(aside / "tls", settings.host, now)
        make_server_certificate(aside / "tls", settings.certificate_names, now)
        with whole_file(aside / "superexec.secret", is_private=True) as secret:
            secret.write_text(secrets.token_urlsafe(48), encoding="ascii")
        make_signing_key(aside / "app" / "signing_key")
        make_identity(aside)
        write_app(aside / "app")
        ca = folder / "tls" / "ca.crt"
        write_text(
            aside / "flower" / "config.toml",
            _CONFIG.format(home=folder / "flower", address=settings.control, ca=ca),
        )
        write_text(aside / "nginx.conf", nginx_text(settings))
        write_text(aside / SETTINGS, settings_text(settings))
    folder.chmod(0o700)


def renew_certificate(settings: FleetSettings, now: datetime | None = None) -> None:
    """Write a new server certificate under the same CA. SuperLink and nginx read it when they start next."""
    make_server_certificate(settings.at("tls"), settings.certificate_names, now or datetime.now(UTC))
