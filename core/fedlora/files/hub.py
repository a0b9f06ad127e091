"""Files of Hugging Face's hub: of one commit, which is told, and none that is larger than whoever reads them takes.

A name such as `main` is another content tomorrow. So it is resolved to a commit first, and every file is asked for by that;
within a process a name stays what it was. Where the hub does not answer, what an earlier download left is used.

A hub may lie about sizes, go on for ever, or say what is no answer. So a process of its own talks with it (`hub_child`),
with bounds of memory, time, and bytes on the disk; what it announced is what it may send.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError
from fedlora.files import hub_child
from fedlora.files.atomic import write_text
from fedlora.files.limited import limited

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w][\w.-]*)*", re.ASCII)
_MAX_REVISION = 128
_MAX_FILES, _MAX_NAME, _SERVER_FAILS = 10_000, 512, 500
_MAX_BYTES = 1 << 50  # of a file
_SLACK_BYTES = 64 << 20  # beside what was announced: lists that the library keeps, what is left of other downloads
# Bytes of addresses. Eight files of 60 MB at a time took 870 MB of them, and 350 MB of memory. hf_xet would take gigabytes,
# and write to a cache of its own that nobody bounds: a download is by HTTP, as every hub offers it.
_LISTING_MEMORY, _DOWNLOAD_MEMORY = 1 << 30, 2 << 30
_PLAIN = {"HF_HUB_DISABLE_XET": "1"}
_LISTING_S = 60.0
_QUIET_S, _LEAST_BYTES = 300.0, 64 << 10  # a download that brings less in this time has ended


class HubError(Exception):
    """Why the hub gives no files, in a line."""


class HubSilentError(HubError):
    """The hub does not answer, or not as one does."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at a commit."""

    commit: str
    sizes: Mapping[str, int]  # {file: bytes}


def split_revision(hub_id: str) -> tuple[str, str | None]:
    """The id and the revision of ID@REVISION; None where there is none."""
    name, at, revision = hub_id.partition("@")
    return name, revision if at else None


def commit_of(directory: Path) -> str | None:
    """The commit of a directory that was downloaded; None for any other."""
    place = directory.resolve()
    return place.name if place.parent.name == "snapshots" and _COMMIT.fullmatch(place.name) else None


def listing(hub_id: str, revision: str | None) -> Listing | None:
    """What there is at a revision (None: main); None where the hub does not answer.

    Raises HubError where it answers that there is no such thing; ImportError without huggingface_hub.
    """
    try:
        return _checked_listing(hub_id, revision)
    except HubSilentError:
        return None


def download(
    hub_id: str, patterns: Iterable[str], revision: str | None, most_bytes: Callable[[str], int | None]
) -> Path:
    """The directory with the files that match, of one commit.

    `most_bytes` is what a file of a name may have; None: as much as the disk has room for. Raises HubError; ImportError
    without huggingface_hub.
    """
    patterns = list(patterns)
    try:
        found = _checked_listing(hub_id, revision)
    except HubSilentError as silent:
        try:
            return _snapshot(hub_id, revision, patterns, None)
        except HubError:
            raise HubError(f"it does not answer ({silent}), and no earlier download has these files") from None
    if len(found.sizes) > _MAX_FILES:
        raise HubError(f"{len(found.sizes)} files; at most {_MAX_FILES} are looked at")
    wanted = {name: size for name, size in found.sizes.items() if any(fnmatchcase(name, each) for each in patterns)}
    for name, size in wanted.items():
        if (most := most_bytes(name)) is not None and size > most:
            raise HubError(f"{name:.140} has {size} bytes; at most {most} are downloaded")
    cache = _cache()
    if sum(wanted.values()) > (free := _free_bytes(cache)):
        raise HubError(f"{sum(wanted.values())} bytes, and {cache} has room for {free}; set HF_HOME elsewhere")
    directory = _snapshot(hub_id, found.commit, [escape(name) for name in wanted], wanted)
    if commit_of(directory) == found.commit:
        _remember(directory.parents[1] / "refs" / (revision or "main"), found.commit)
    return directory


def _remember(name: Path, commit: str) -> None:
    """What the name stood for, as huggingface_hub keeps it: without a network the name finds the commit again."""
    if name.name != commit:
        with suppress(OSError, ConfigError):
            write_text(name, commit)


def _checked_listing(hub_id: str, revision: str | None) -> Listing:
    """Raises HubError, HubSilentError among them; ImportError."""
    if revision is not None and (len(revision) > _MAX_REVISION or not _REVISION.fullmatch(revision)):
        raise HubError(f"revision {revision!r:.80}: expected a branch, a tag or a commit")
    return _listing(hub_id, revision)


@lru_cache(maxsize=64)
def _listing(hub_id: str, revision: str | None) -> Listing:
    answer = _asked(
        {"id": hub_id, "revision": revision, "memory_bytes": _LISTING_MEMORY, "file_bytes": _SLACK_BYTES}, _LISTING_S
    )
    if "error" in answer:
        refuses = 0 < answer["status"] < _SERVER_FAILS
        raise (HubError if refuses else HubSilentError)(answer["error"])
    commit, sizes = answer["commit"], {}
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"the hub names no commit of {revision or 'main'}")
    for name, size in answer["files"]:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise HubError(f"it lists a file called {name!r:.80}; expected 1 to {_MAX_NAME} printable characters")
        if type(size) is not int or not 0 <= size <= _MAX_BYTES:
            raise HubError(f"it lists {name:.140} with {size!r:.40} bytes; expected a number of bytes")
        sizes[name] = size
    return Listing(commit, sizes)


def _snapshot(hub_id: str, revision: str | None, patterns: list[str], wanted: Mapping[str, int] | None) -> Path:
    """The directory of the files that match, no larger than they are `wanted`; None: of what was downloaded before."""
    sizes = (wanted or {}).values()
    answer = _asked(
        {
            "id": hub_id, "revision": revision, "patterns": patterns, "is_cached": wanted is None,
            "memory_bytes": _DOWNLOAD_MEMORY, "file_bytes": max(sizes, default=0) + _SLACK_BYTES,
            "most_bytes": sum(sizes) + _SLACK_BYTES, "quiet_s": _QUIET_S, "least_bytes": _LEAST_BYTES,
        },
        None,
    )  # fmt: skip
    if "error" in answer:
        raise HubError(answer["error"])
    return Path(answer["directory"])


def _asked(request: Mapping[str, Any], patience_s: float | None) -> dict[str, Any]:
    """What the process that talks with the hub answers. Raises ImportError, HubSilentError where it has none."""
    if find_spec("huggingface_hub") is None:
        raise ImportError("huggingface_hub")
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    script = limited(hub_child.__file__, memory_bytes=request["memory_bytes"], file_bytes=request["file_bytes"])
    try:
        done = subprocess.run(
            [sys.executable, "-P", *script], input=json.dumps(request).encode(),
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path, **_PLAIN}, timeout=patience_s, check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise HubSilentError(f"no answer within {patience_s:g} s") from None
    except OSError as error:
        raise HubError(f"no process could be begun for it: {error.strerror}") from None
    except ValueError:
        raise HubSilentError(f"the process that asked it ended with {done.returncode}") from None
    if "missing" in answer:
        raise ImportError(answer["missing"])
    return dict(answer)


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _free_bytes(folder: Path) -> int:
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    return shutil.disk_usage(there).free
