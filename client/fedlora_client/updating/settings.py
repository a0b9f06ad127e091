"""What a device must know to update: where from, whom it trusts, what it is for, and where it is put."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fedlora.errors import ConfigError
from fedlora.files.bounded import read_bounded
from fedlora.identity.keys import PublicKey
from fedlora.nearest import hint
from fedlora.release.channels import CHANNELS, Channel
from fedlora.release.layout import check_name

MAX_ROOT_BYTES = 512_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """One adapter of a device, and the repository that it comes from."""

    url: str  # of the repository: metadata/ and targets/ lie below it
    name: str  # of the release
    channel: Channel = "stable"
    root: Path  # the pinned 1.root.json, brought here in another way than the releases
    keys: tuple[Path, ...]  # the public keys that releases may be signed by
    base: str  # the base pack that is here
    model: str = ""  # a folder with exported graphs, for canaries
    folder: Path  # of the releases of this device
    max_mb: int = 1024  # of a release
    timeout_s: float = 600.0  # for all that is fetched
    watch_s: float = 60.0  # that a server must live with a new version

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]", self.url):
            raise ConfigError(
                f"update.url: {self.url!r:.120}; expected http:// or https:// and the address of a repository"
            )
        check_name(self.name)
        if self.channel not in CHANNELS:
            near = hint(self.channel, CHANNELS, f"expected {' or '.join(CHANNELS)}")
            raise ConfigError(f"update.channel: {self.channel!r:.60}; {near}; expected a channel")
        if not self.keys:
            raise ConfigError("update.keys: none; name the public key that releases must be signed by")
        if self.max_mb < 1 or not self.timeout_s > 0 or self.watch_s < 0:
            raise ConfigError("update.max_mb must be at least 1, timeout_s above 0 and watch_s at least 0")

    @property
    def place(self) -> Path:
        """The folder of this name."""
        return self.folder / self.name

    def trusted(self) -> list[PublicKey]:
        """Raises IdentityError where a key cannot be read."""
        return [PublicKey.read(path) for path in self.keys]

    def pinned_root(self) -> bytes:
        """Raises ConfigError where the root cannot be read."""
        try:
            return read_bounded(self.root, MAX_ROOT_BYTES)
        except OSError as error:
            raise ConfigError(
                f"update.root: {self.root}: {error.strerror}; expected the root file that fedlora publish init made"
            ) from None


def channel_of(text: str) -> Channel:
    """A channel by its name; `UpdateSettings` refuses what is none."""
    return cast(Channel, text)
