"""The folder of a fleet's server, and the server.toml in it.

server.toml          the settings
tls/                 the private CA and the server's certificate; keys are for their owner alone
devices.json         who was enrolled: names, public keys, Flower's nodes
identity/            the pair that signs what the server asks and commits, and what vouches for it where it is a new one
superexec.secret     what flower-superexec shows to SuperLink
app/                 the Flower app, and the key that signs it
superlink.db         SuperLink's state
run.json, runs/      the run that is under way, and what the runs made
logs/, flower/       logs of Flower's processes; Flower's own home
nginx.conf           what stands between SuperLink and other machines
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedlora.base.pack import EMBEDDED
from fedlora.config.run import RunConfig, Scalar
from fedlora.errors import ConfigError
from fedlora.files.at_rest_key import placed_source
from fedlora.files.documents import flattened, read_toml
from fedlora.fleet.names import is_host, is_ip, joined_address
from fedlora.nearest import unknown_key

SETTINGS = "server.toml"
PORT = 8443
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What a device's own configuration says, or the server for it.
OWN_KEYS = ("output", "server.resume")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Where a fleet's server is reached, and what its runs are. Raises ConfigError for values that make no server."""

    folder: Path
    host: str  # by which devices reach the server; bundles carry it
    port: int = PORT
    names: tuple[str, ...] = ()  # further names and addresses in the server's certificate
    listen: str = "127.0.0.1"  # where SuperLink listens: its Control API lets whoever reaches it start runs
    listen_port: int = PORT
    at_rest_key: str = ""  # file:PATH, env:VARIABLE or keyring:NAME: the adapters of runs are encrypted
    run: Mapping[str, Scalar]  # the configuration of a run, flat

    def __post_init__(self) -> None:
        for name in (self.host, *self.names):
            if not is_host(name):
                raise ConfigError(f"host: {name!r:.80} must be a host name or an IP address, without port and brackets")
        if not is_ip(self.listen):
            raise ConfigError(f"listen: {self.listen!r:.80} must be an IP address of this machine, as 127.0.0.1")
        for key, port in (("port", self.port), ("listen_port", self.listen_port)):
            if type(port) is not int or not 0 < port < 1 << 16:
                raise ConfigError(f"{key}: {port!r:.40} must be a port, from 1 to 65535")
        for key in OWN_KEYS:
            if key in self.run:
                raise ConfigError(f"run.{key}: fedlora server run chooses it; leave it out")
        RunConfig.from_flat(self.run, "run")

    @property
    def address(self) -> str:
        """HOST:PORT, as devices reach the server."""
        return joined_address(self.host, self.port)

    @property
    def control(self) -> str:
        """HOST:PORT of SuperLink on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen, self.listen)
        return joined_address(host, self.listen_port)

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """What the server's certificate is for: the fleet's name, and this machine to itself."""
        return tuple(dict.fromkeys((self.host, *self.names, *LOOPBACK)))

    @property
    def is_open(self) -> bool:
        """Whether SuperLink listens to other machines itself."""
        return not (self.listen.startswith("127.") or self.listen == "::1")

    def at(self, *place: str) -> Path:
        """A place in the folder."""
        return self.folder.joinpath(*place)


def read_settings(folder: Path) -> FleetSettings:
    """The settings of the fleet's server in a folder. Raises ConfigError where there is none, or a value is wrong."""
    path = folder / SETTINGS
    if not path.is_file():
        raise ConfigError(
            f"{folder}: there is no {SETTINGS}; make a fleet's server: fedlora server init {folder} --host NAME"
        )
    content = read_toml(path)
    known = {each.name for each in fields(FleetSettings)} - {"folder"}
    for key in content:
        if key not in known:
            raise unknown_key(key, sorted(known), str(path))
    values: dict[str, Any] = {key: content[key] for key in known & content.keys()}
    if not isinstance(values.get("host"), str):
        raise ConfigError(f"{path}: host must be a text: the name by which devices reach this server")
    names, run = values.get("names", []), values.get("run", {})
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{path}: names must be a list of texts")
    if not (isinstance(run, dict) and all(isinstance(values.get(key, ""), str) for key in ("listen", "at_rest_key"))):
        raise ConfigError(f"{path}: run must be a table, and listen and at_rest_key texts")
    flat = flattened(run)
    try:
        values["at_rest_key"] = placed_source(values.get("at_rest_key", ""), folder.absolute())
        if isinstance(flat.get("base"), str):
            flat["base"] = placed(flat["base"], folder.absolute())
        return FleetSettings(folder=folder.absolute(), **values | {"names": tuple(names), "run": flat})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def placed(base: str, folder: Path) -> str:
    """A base pack by its place, whatever folder Flower's processes work in; a relative one counts from `folder`."""
    try:
        return base if base == EMBEDDED else os.path.normpath(folder / Path(base).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"run.base: {base:.80}: {error}; give the whole path") from None


def settings_text(settings: FleetSettings) -> str:
    """The server.toml of these settings."""
    lines = [
        "# A fleet's server: fedlora server run reads this. docs/deployment.md says what each line is for.",
        f"host = {_toml(settings.host)}  # by which devices reach it; bundles carry it",
        f"port = {settings.port}",
        "# Further names in its certificate; fedlora server rotate writes one that has them.",
        f"names = [{', '.join(map(_toml, settings.names))}]",
        "",
        "# Where SuperLink listens. Whoever reaches its Control API starts runs: others reach it through nginx.conf.",
        f"listen = {_toml(settings.listen)}",
        f"listen_port = {settings.listen_port}",
        "",
        *([f"at_rest_key = {_toml(settings.at_rest_key)}", ""] if settings.at_rest_key else []),
        "# The configuration of a run, every key as in a scenario.",
        "[run]",
        *(f"{key} = {_toml(value)}" for key, value in settings.run.items()),
    ]
    return "\n".join(lines) + "\n"


def _toml(value: Scalar) -> str:
    return json.dumps(value, ensure_ascii=False)
