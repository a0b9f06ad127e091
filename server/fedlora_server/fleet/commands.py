"""Flower's commands as `fedlora server run` starts them; docs/deployment.md gives the same by hand."""

from __future__ import annotations

from fedlora.fleet.flower_process import flower_environment

from fedlora_server.fleet.roll import VARIABLE
from fedlora_server.fleet.settings import FleetSettings


def superlink(settings: FleetSettings) -> list[str]:
    tls = settings.at("tls")
    return [
        "flower-superlink", "--host", settings.listen, "--port", str(settings.listen_port),
        "--ssl-ca-certfile", str(tls / "ca.crt"), "--ssl-certfile", str(tls / "server.crt"),
        "--ssl-keyfile", str(tls / "server.key"), "--enable-supernode-auth",
        "--database", str(settings.at("superlink.db")), "--isolation", "process",
        "--superexec-auth-secret-file", str(settings.at("superexec.secret")),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def superexec(settings: FleetSettings) -> list[str]:
    return [
        "flower-superexec", "--runtime-api-address", settings.control,
        "--root-certificates", str(settings.at("tls", "ca.crt")),
        "--superexec-auth-secret-file", str(settings.at("superexec.secret")),
    ]  # fmt: skip


def environment(settings: FleetSettings) -> dict[str, str]:
    """What Flower's processes run in: lines as they are written, and the list of devices for the app."""
    return flower_environment(settings.at("flower")) | {
        "PYTHONUNBUFFERED": "1",
        VARIABLE: str(settings.at("devices.json")),
    }
