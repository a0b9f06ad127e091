"""How Flower's SuperNode is started for a device: with TLS, its key, and the socket at which the app finds the service."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.fleet.flower_process import flower_environment

from fedlora_client.service.config import DeviceConfig
from fedlora_client.supervision.warm_app import PROGRAM, has_room, warm_program

log = logging.getLogger("fedlora.device")

_PROCESS = Path(__file__).with_name("supernode_process.py")


def supernode_process(config: DeviceConfig) -> list[str]:
    """The command of `supernode_command` in a process that ends when the SuperNode has given up. Raises as that does."""
    return [sys.executable, "-P", str(_PROCESS), str(config.state / "node"), *supernode_command(config)]


def supernode_command(config: DeviceConfig) -> list[str]:
    """`flower-supernode` with all it needs. Raises ConfigError where the configuration does not say whom it belongs to."""
    server = config.server
    if not server.superlink:
        raise ConfigError(
            f"{config.path}: server.superlink is missing; join a fleet (fedlora device join), or pass --only trainer"
        )
    if not server.insecure and not server.key:
        raise ConfigError(
            f"{config.path}: server.key is missing; name the device's key, or set server.insecure to try out"
        )
    for name in ("certificates", "key", "trusted_entities"):
        path = getattr(server, name)
        if path and not Path(path).is_file():
            raise ConfigError(f"{config.path}: server.{name}: there is no {path}; give the file that belongs there")
    command = [_found("flower-supernode"), "--superlink", server.superlink, "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(_free_port())]
    if server.insecure:
        command += ["--insecure"]
    if server.certificates:
        command += ["--root-certificates", server.certificates]
    if server.key:
        command += ["--auth-supernode-private-key", server.key]
    if server.trusted_entities:
        command += ["--trusted-entities", server.trusted_entities]
    return [*command, "--node-config", node_config(config)]


def node_config(config: DeviceConfig) -> str:
    """What the app is told of its device. Raises ConfigError for a path that Flower could not read."""
    if '"' in config.device.socket or "\\" in config.device.socket:
        raise ConfigError(f"device.socket: {config.device.socket}: name a path without quotes and backslashes")
    return f'socket="{config.device.socket}" name="{config.device.name}"'


def flower_home(config: DeviceConfig) -> Path:
    """Flower's folder of this device."""
    return config.state / "flwr"


def warm_app_of(config: DeviceConfig) -> tuple[list[str] | None, dict[str, str]]:
    """(the command of the warm app, the environment in which SuperNode's messages go to it).

    None, and the plain environment, where it has no place: then each message loads its app anew.
    """
    environment, path = flower_environment(flower_home(config)), config.state / "app.sock"
    try:
        if not has_room(path):
            return None, environment
        folder = warm_program(config.state / "bin", path, _found(PROGRAM))
    except OSError as error:
        log.warning("%s: %s; each message loads its app anew", config.state, error.strerror)
        return None, environment
    command = [sys.executable, "-m", "fedlora_client.supervision.warm_app", str(path)]
    return command, environment | {"PATH": os.pathsep.join((str(folder), environment["PATH"]))}


def _found(program: str) -> str:
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if not found:
        raise ConfigError(f"{program} is not installed; install fedlora[client] again, with pip")
    return found


def _free_port() -> int:
    """For what Flower's processes of this device say to each other; two devices may share a machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
