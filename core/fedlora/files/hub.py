"""Files of Hugging Face's hub: of one commit, which is told, and none that is larger than whoever reads them takes.

A name such as `main` is another content tomorrow. So it is resolved to a commit first, and every file is asked for by that;
within a process a name stays what it was. Where the hub does not answer, what an earlier download left is used.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w][\w.-]*)*", re.ASCII)
_MAX_REVISION = 128
_MAX_FILES, _SERVER_FAILS = 10_000, 500


class HubError(Exception):
    """Why the hub gives no files, in a line."""


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
    from huggingface_hub.errors import HfHubHTTPError

    if revision is not None and (len(revision) > _MAX_REVISION or not _REVISION.fullmatch(revision)):
        raise HubError(f"revision {revision!r:.80}: expected a branch, a tag or a commit")
    try:
        return _listing(hub_id, revision)
    except HubError:
        raise
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= _SERVER_FAILS:
            return None
        raise HubError(_line(error)) from None
    except Exception:  # of the library below, which there are several of: there is no network
        return None


def download(
    hub_id: str, patterns: Iterable[str], revision: str | None, most_bytes: Callable[[str], int | None]
) -> Path:
    """The directory with the files that match, of one commit.

    `most_bytes` is what a file of a name may have; None: as much as the disk has room for. Raises HubError; ImportError
    without huggingface_hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    patterns = list(patterns)
    found = listing(hub_id, revision)
    if found:
        if len(found.sizes) > _MAX_FILES:
            raise HubError(f"{len(found.sizes)} files; at most {_MAX_FILES} are looked at")
        wanted = {name: size for name, size in found.sizes.items() if any(fnmatch(name, each) for each in patterns)}
        for name, size in wanted.items():
            if (most := most_bytes(name)) is not None and size > most:
                raise HubError(f"{name} has {size} bytes; at most {most} are downloaded")
        if sum(wanted.values()) > (free := _free_bytes(Path(HF_HUB_CACHE))):
            raise HubError(
                f"{sum(wanted.values())} bytes, and {HF_HUB_CACHE} has room for {free}; set HF_HOME elsewhere"
            )
    try:
        directory = Path(
            snapshot_download(hub_id, allow_patterns=patterns, revision=found.commit if found else revision)
        )
    except Exception as error:
        raise HubError(_line(error)) from None
    if found and commit_of(directory) == found.commit:
        _remember(directory.parents[1] / "refs" / (revision or "main"), found.commit)
    return directory


def _remember(name: Path, commit: str) -> None:
    """What the name stood for, as huggingface_hub keeps it: without a network the name finds the commit again."""
    if name.name != commit:
        with suppress(OSError, ConfigError):
            write_text(name, commit)


@lru_cache(maxsize=64)
def _listing(hub_id: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=30)
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise HubError(f"the hub names no commit of {revision or 'main'}")
    return Listing(info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()})


def _free_bytes(folder: Path) -> int:
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    return shutil.disk_usage(there).free


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
