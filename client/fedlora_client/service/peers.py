"""Who may ask a device service: by the credentials that the kernel gives of the process at the other end."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

from fedlora.errors import ConfigError

_LARGEST = (1 << 32) - 2
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred


@dataclass(frozen=True, slots=True)
class Peers:
    """The user of the service itself, and those that its configuration names."""

    users: frozenset[int]
    group: int | None = None  # whose processes may ask too: the socket is theirs to open

    @classmethod
    def named(cls, users: tuple[str, ...], group: str) -> Peers:
        """By names or numbers. Raises ConfigError for one that this machine does not know."""
        return cls(frozenset({os.getuid(), *map(_user, users)}), _group(group) if group else None)

    def refusal(self, connection: socket.socket) -> str:
        """Why this peer may not ask; empty where it may."""
        option = getattr(socket, "SO_PEERCRED", None)
        if option is None:  # no Linux: the socket's mode is what keeps others out
            return ""
        _, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
        if uid in self.users or (self.group is not None and gid == self.group):
            return ""
        return f"user {uid} may not ask this device; name it in device.peers of device.toml"


def _number(name: str) -> int:
    """Raises ValueError for what no user and no group can have: the largest of all stands for nobody."""
    number = int(name)
    if number > _LARGEST:
        raise ValueError(f"{name:.40} is no number of a user or a group")
    return number


def _user(name: str) -> int:
    try:
        return _number(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise ConfigError(f"device.peers: this machine has no user {name!r}; name one that it has") from None


def _group(name: str) -> int:
    try:
        return _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"device.group: this machine has no group {name!r}; name one that it has") from None
