"""`[update]` of a device.toml."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSection:
    """Where signed releases come from, for `fedlora update`; nothing where `url` is empty."""

    url: str = ""  # of the repository
    name: str = ""  # of the release
    channel: str = "stable"
    root: str = ""  # the pinned root of the repository
    keys: tuple[str, ...] = ()  # public keys that releases may be signed by
    model: str = ""  # a folder with exported graphs, for canaries; else serve.model
    folder: str = ""  # of the releases; else `releases` in device.state
    max_mb: int = 1024  # of a release
    timeout_s: float = 600.0  # for all that is fetched
    watch_s: float = 60.0  # that the server must live with a new version
