"""One update: fetch and verify, try, swap, watch; what fails leaves what was in use, or brings it back.

    fetched, verified --> canary --> installed.json names it, on trial --> server lives a minute --> confirmed
                     \\-> refused           \\------------- previous one again, and refused -------/

The swap is one file replaced whole. A power cut leaves it as it was before or after; an update that finds a version on
trial goes back first, and begins anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fedlora.base.pack import open_pack
from fedlora.errors import ConfigError, FedloraError, ReleaseError
from fedlora.files.atomic import write_text
from fedlora.files.lock_file import hold
from fedlora.files.temporary import clear_leftovers
from fedlora.release.installed import (
    VERSIONS,
    Installed,
    InstalledVersion,
    read_installed,
    version_folder,
    write_installed,
)
from fedlora.release.sealed import SignedRelease
from fedlora.release.serving import is_served, read_served

from fedlora_client.updating.fetching import fetch_version, newest_release, refreshed
from fedlora_client.updating.settings import UpdateSettings
from fedlora_client.updating.trial import canary_fails, server_fails

ATTEMPT = "attempt.json"
_MOST_REFUSED = 32
Result = Literal["installed", "unchanged", "refused", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of an update."""

    result: Result
    version: int = 0  # that it was about; 0: none was found
    told: str
    at: str


def update(
    settings: UpdateSettings, *, now: datetime | None = None, try_canary: Callable[..., str] = canary_fails,
    watch: Callable[..., str] = server_fails,
) -> Attempt:  # fmt: skip
    """Take the newest release of the channel. Raises FedloraError where it cannot be had or must not be taken; what is in
    use stays so in any case, and comes back where the new one fails.

    `try_canary` and `watch` return why a version may not stay, as `canary_fails` and `server_fails` do.
    """
    with _alone(settings.place):
        try:
            attempt = _update(settings, now, try_canary, watch)
        except FedloraError as error:
            _tell(settings.place, Attempt(result="failed", told=str(error), at=_now_text()))
            raise
        _tell(settings.place, attempt)
        return attempt


def status(settings: UpdateSettings) -> Mapping[str, object]:
    """What runs, what was before, and what came of the last update. Raises ReleaseError."""
    installed = read_installed(settings.place)
    attempt: object = None
    with suppress(OSError, ValueError):
        attempt = json.loads((settings.place / ATTEMPT).read_text(encoding="utf-8"))
    served = "" if not is_served(settings.folder) else "by a server that tells nothing of it"
    if served and (now := read_served(settings.place)) is not None:
        served = now.error or now.folder
    return {
        "name": settings.name, "channel": settings.channel, **asdict(installed), "served": served, "last_attempt": attempt,
    }  # fmt: skip


def _update(
    settings: UpdateSettings, now: datetime | None, try_canary: Callable[..., str], watch: Callable[..., str]
) -> Attempt:
    place = settings.place
    for folder in (place, place / VERSIONS):
        clear_leftovers(folder)
    installed = _settled(place)
    base = open_pack(settings.base)
    with refreshed(settings) as mirror:
        release, envelope = newest_release(mirror, settings, installed, base, now)
        version = InstalledVersion.of(release)
        if installed.current == version:
            return _attempt("unchanged", version, f"{settings.name} {version.version} is in use, and the newest")
        if version.digest in installed.refused:
            why = installed.refused[version.digest]
            return _attempt("unchanged", version, f"{settings.name} {version.version} was refused here: {why}")
        fetch_version(mirror, settings, release, envelope, base)
    newest = replace(installed, newest=version.version, newest_digest=version.digest)
    if why := _canary(settings, release, version, try_canary):
        return _refused(place, newest, version, why)
    write_installed(place, replace(newest, current=version, previous=installed.current, is_confirmed=False))
    if why := watch(settings.folder, settings.name, version.folder, settings.watch_s):
        return _refused(place, newest, version, why)
    write_installed(place, replace(newest, current=version, previous=installed.current, is_confirmed=True))
    _clear(place)
    return _attempt("installed", version, f"{settings.name} {version.version} is in use")


def _canary(
    settings: UpdateSettings, release: SignedRelease, version: InstalledVersion, try_canary: Callable[..., str]
) -> str:
    if release.manifest.canary is None:
        return ""
    if not settings.model:
        raise ConfigError(
            f"release {settings.name} {version.version} has a canary, and no graphs are named to try it with; set "
            "update.model, or serve.model, to the folder that fedlora export wrote"
        )
    return try_canary(version_folder(settings.place, version), settings.model, settings.keys)


def _settled(place: Path) -> Installed:
    """What is in use; where an update was cut off in its trial, what was before."""
    installed = read_installed(place)
    if installed.is_confirmed:
        return installed
    before = replace(installed, current=installed.previous, previous=None, is_confirmed=True)
    write_installed(place, before)
    return before


def _refused(place: Path, before: Installed, version: InstalledVersion, why: str) -> Attempt:
    """Go on with what was in use, and do not take this version again."""
    refused = dict([*before.refused.items(), (version.digest, why)][-_MOST_REFUSED:])
    write_installed(place, replace(before, is_confirmed=True, refused=refused))
    _clear(place)
    return _attempt("refused", version, f"{version.version} is not taken: {why}")


def _clear(place: Path) -> None:
    """Delete the versions that are neither in use nor the one before."""
    installed = read_installed(place)
    kept = {version.folder for version in (installed.current, installed.previous) if version}
    for folder in (place / VERSIONS).iterdir() if (place / VERSIONS).is_dir() else ():
        if folder.name not in kept and not folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)


def _attempt(result: Result, version: InstalledVersion, told: str) -> Attempt:
    return Attempt(result=result, version=version.version, told=told, at=_now_text())


def _tell(place: Path, attempt: Attempt) -> None:
    """A full disk costs what is told, and nothing else."""
    with suppress(OSError, ConfigError):
        write_text(place / ATTEMPT, json.dumps(asdict(attempt), indent=1) + "\n")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One update at a time. Raises ReleaseError where another one is at work, ConfigError where nothing can be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        held = hold(place / "update.lock")
    except BlockingIOError:
        raise ReleaseError(f"{place}: another update is at work; wait for its end") from None
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; name a folder that may be written with --folder") from None
    with held:
        yield


def _now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
