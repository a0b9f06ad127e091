"""The pair by which a fleet's server signs: what it asks of devices, and the rounds that it commits.

identity/server.key, server.pub    the pair that signs now, mode 0600, and its public half, which bundles carry
identity/rotated/0001.json         by the first pair, that the second took its place; then the second's, and so on
identity/counter                   above every counter that was signed

A fleet of an earlier version has no such folder, and signs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.atomic import whole_file, write_text
from fedlora.files.bounded import read_bounded
from fedlora.fleet.bundle import written
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.rotation import MAX_BYTES, MOST, rotated
from fedlora.identity.statement import MAX_COUNTER
from fedlora.numbered import is_number

from fedlora_server.run.chain import Signer

FOLDER, KEY, PUBLIC, ROTATED, COUNTER = "identity", "server.key", "server.pub", "rotated", "counter"
_AHEAD = 1 << 32  # counters that are taken at a time; a microsecond each, that is more than an hour


def make_identity(fleet: Path) -> None:
    """Write a pair into a fleet's folder. Raises ConfigError where one is there."""
    folder = fleet / FOLDER
    if (folder / KEY).exists():
        raise ConfigError(
            f"{folder / KEY} is there already: the fleet signs; renew it: fedlora server rotate --identity"
        )
    (folder / ROTATED).mkdir(parents=True, exist_ok=True)
    key = SigningKey.generate()
    key.write(folder / KEY)
    key.public.write(folder / PUBLIC)


def signs(fleet: Path) -> bool:
    """Whether the server of a fleet signs."""
    return (fleet / FOLDER / KEY).exists()


def read_signer(fleet: Path) -> Signer | None:
    """The pair of a fleet and its chain; None for a fleet that signs nothing. Raises FedloraError for what is damaged."""
    if not signs(fleet):
        return None
    folder = fleet / FOLDER / ROTATED
    names = sorted(folder.glob("*.json"))[-MOST:] if folder.is_dir() else []
    try:
        chain = tuple(read_bounded(path, MAX_BYTES) for path in names)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be read: {error.strerror}; expected what fedlora server rotate wrote"
        ) from None
    return Signer(key=SigningKey.read(fleet / FOLDER / KEY), rotated=chain)


def public_identity(fleet: Path) -> str:
    """The public half of a fleet's pair, PEM; "" for a fleet that signs nothing."""
    return PublicKey.read(fleet / FOLDER / PUBLIC).to_pem() if signs(fleet) else ""


def rotate_identity(fleet: Path, now: datetime) -> PublicKey:
    """Put a new pair in the place of a fleet's, signed by that one; devices follow by the next instruction.

    Cut off anywhere, the pair before still signs. Raises ConfigError for a fleet that signs nothing.
    """
    folder = fleet / FOLDER
    signer = read_signer(fleet)
    if signer is None:
        raise ConfigError(f"{fleet}: this fleet signs nothing yet; make its pair: fedlora server rotate --identity")
    new = SigningKey.generate()
    numbers = (int(path.stem) for path in (folder / ROTATED).glob("[0-9]*.json") if is_number(path.stem))
    number = 1 + max(numbers, default=0)
    with whole_file(folder / ROTATED / f"{number:04d}.json") as aside:
        aside.write_bytes(rotated(signer.key, new.public, written(now)))
    next_key = folder / f"{KEY}.next"
    next_key.unlink(missing_ok=True)
    new.write(next_key)
    new.public.write(folder / PUBLIC)
    next_key.replace(folder / KEY)
    return new.public


@dataclass
class Counter:
    """Numbers that only rise, also over restarts, and where the clock goes back.

    The file has a number that none before has passed; it is written before one passes it.
    """

    path: Path
    _last: int = field(default=0)
    _reserved: int = field(default=0)

    def next(self) -> int:
        """Raises ConfigError or OSError where the file cannot be written, ConfigError where it holds something else."""
        if not self._reserved:
            self._last = self._reserved = self._read()
        number = max(self._last + 1, time.time_ns() // 1000)
        if number >= self._reserved:
            self._reserved = number + _AHEAD
            write_text(self.path, f"{self._reserved}\n")
        self._last = number
        return number

    def _read(self) -> int:
        try:
            text = read_bounded(self.path, 64).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return 0
        if not (text.isascii() and text.isdecimal() and int(text) < MAX_COUNTER - 2 * _AHEAD):
            raise ConfigError(
                f"{self.path}: {text!r:.40}; expected a whole number: put back the file, without which devices may take "
                "old instructions for new ones"
            )
        return int(text)
