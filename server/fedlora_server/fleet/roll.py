"""Who a node is, for the ServerApp of a fleet: the names of enrolment, not those that devices give themselves."""

from __future__ import annotations

import os
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.identity.keys import PublicKey

from fedlora_server.fleet.devices import read_devices

VARIABLE = "FEDLORA_FLEET"  # in a ServerApp's environment: the fleet's devices.json
MARK = "fedlora: "  # before a line of the ServerApp that is for whoever runs the fleet, among those of Flower


class Roll:
    """The names of nodes, as devices.json has them at the moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}
        self._keys: dict[int, PublicKey] = {}
        self._read()

    @property
    def folder(self) -> Path:
        """The fleet's."""
        return self._path.parent

    def name_of(self, node: int) -> str | None:
        """The name of a node; None for one that is not, or no longer, of the fleet."""
        self._read()
        return self._names.get(node)

    def key_of(self, node: int) -> PublicKey | None:
        """The pair that signs a node's answers; None where the fleet has no such node, or it was enrolled without one."""
        self._read()
        return self._keys.get(node)

    def _read(self) -> None:
        status = self._path.stat()
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)  # a changed file is another one
        if seen != self._seen:
            entries = {e.node: e for e in read_devices(self._path).current if e.node is not None}
            self._names = {node: entry.name for node, entry in entries.items()}
            self._keys = {node: PublicKey.from_pem(entry.identity) for node, entry in entries.items() if entry.identity}
            self._seen = seen


def roll_of_environment() -> Roll | None:
    """The roll of the fleet whose ServerApp this process is; None in a simulation or a run without enrolment."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        return Roll(Path(path))
    except OSError as error:
        raise ConfigError(
            f"{VARIABLE}={path}: {error.strerror}; name the devices.json of a fleet, or unset it"
        ) from None
