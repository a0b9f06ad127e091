"""Where a release lies in a repository of The Update Framework: the paths of its targets.

channels/stable/tone.json             its signed manifest, release.json: what devices of the channel take
releases/tone/3/adapter/...           its files; one that is in both channels lies there once
differences/tone/3-from-2/adapter/... the same for devices that have version 2, where that is smaller (`difference.py`)
"""

from __future__ import annotations

from typing import Literal, get_args

Channel = Literal["stable", "canary"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)
METADATA, TARGETS = "metadata", "targets"  # the two folders of a repository, below its address


def channel_target(channel: Channel, name: str) -> str:
    """What a channel gives out under a name."""
    return f"channels/{channel}/{name}.json"


def file_target(name: str, version: int, path: str) -> str:
    """A file of a release."""
    return f"releases/{name}/{version}/{path}"


def difference_target(name: str, version: int, parent: int, path: str) -> str:
    """What makes a file of a release of that of its parent."""
    return f"differences/{name}/{version}-from-{parent}/{path}"
