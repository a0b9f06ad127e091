"""A data set that the library `datasets` reads: `hf:NAME@REVISION` on the hub, or `hf:` and a directory that it saved.

    hf:fancyzhx/ag_news@eb185aade064a813bc0b7f42de02595523103ca4        hf:openai/gsm8k:main@REVISION        hf:./saved

What is on the hub may change, and a revision does not: without one there is no telling what a run was trained on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedlora.errors import ConfigError

PREFIX = "hf:"
_NAME = re.compile(
    r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?@(?P<revision>[0-9a-f]{40})", re.ASCII
)
_LOCAL = (".", "/", "~")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """What is read: of the hub a name, a configuration where it has several, and a commit; else a directory's path."""

    name: str
    config: str = ""
    revision: str = ""  # "" for a directory


def is_hub(path: str) -> bool:
    return path.startswith(PREFIX)


def is_local(path: str) -> bool:
    """Whether it is a directory, and so a path."""
    return path.removeprefix(PREFIX).startswith(_LOCAL)


def hub_source(path: str) -> HubSource:
    """Raises ConfigError for a name without a commit."""
    if is_local(path):
        return HubSource(name=path.removeprefix(PREFIX))
    if (found := _NAME.fullmatch(path.removeprefix(PREFIX))) is None:
        raise ConfigError(
            f"data.path is {path:.200}; expected {PREFIX}NAME@REVISION with the 40 digits of a commit, so that the data "
            f"stay what they are, {PREFIX}NAME:CONFIGURATION@REVISION, or {PREFIX}./DIRECTORY"
        )
    return HubSource(name=found["name"], config=found["config"] or "", revision=found["revision"])
