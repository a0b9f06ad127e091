"""Which version of a release is in use on a machine: what `fedlora update` writes and `fedlora serve` reads.

FOLDER/tone/installed.json          the version in use, and the one before: one file, replaced whole
FOLDER/tone/versions/3-0f2a.../     the files of a version: release.json and adapter/
FOLDER/tone/tuf/                    what is known of the repository, verified
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedlora.errors import ReleaseError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.release.checked import is_count, is_text, object_of
from fedlora.release.layout import check_path
from fedlora.release.sealed import SignedRelease

INSTALLED, VERSIONS = "installed.json", "versions"
_MAX_BYTES = 1 << 20
_EXPECTED = "what fedlora update remembers"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledVersion:
    """One version on this machine."""

    version: int
    digest: str  # of its manifest
    signer: str
    folder: str  # its name below VERSIONS

    @classmethod
    def of(cls, release: SignedRelease) -> InstalledVersion:
        folder = version_name(release.manifest.version, release.digest)
        return cls(version=release.manifest.version, digest=release.digest, signer=release.signer, folder=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What is in use under one name, and what was before."""

    newest: int = 0  # the largest version that was ever verified here: none below it is taken
    newest_digest: str = ""  # of its manifest: a version has one content
    current: InstalledVersion | None = None
    previous: InstalledVersion | None = None  # to go back to
    is_confirmed: bool = True  # False: the current one is on trial
    refused: Mapping[str, str] = field(default_factory=dict)  # {digest of a manifest: why it did not stay in use}


def read_installed(folder: Path) -> Installed:
    """What is in use in FOLDER, that of one name; nothing where none was ever installed. Raises ReleaseError."""
    path = folder / INSTALLED
    if not os.path.lexists(path):
        return Installed()
    try:
        value = read_object(path, ReleaseError, _EXPECTED, max_bytes=_MAX_BYTES)
        values = object_of(value, str(path), set(Installed.__dataclass_fields__))
        for name in ("current", "previous"):
            values[name] = None if values[name] is None else _version(values[name], name)
        installed = Installed(**values)
        refused = object_of(installed.refused, "refused")
        sound = is_count(installed.newest) and type(installed.is_confirmed) is bool
        if not sound or not isinstance(installed.newest_digest, str) or not all(map(is_text, refused)):
            raise ReleaseError(f"newest is {installed.newest!r:.40}; expected a version, a digest and reasons")
    except ReleaseError as error:
        told = str(error)
        where = "" if told.startswith(str(path)) else f"{path}: "
        raise ReleaseError(
            f"{where}{told}: the file was changed or damaged; remove the folder {folder} to begin anew, where you know "
            "that the repository gives out no older version"
        ) from None
    return installed


def write_installed(folder: Path, installed: Installed) -> None:
    """Replace it, whole and synced."""
    write_text(folder / INSTALLED, json.dumps(asdict(installed), indent=1) + "\n")


def version_folder(folder: Path, version: InstalledVersion) -> Path:
    """Where the files of a version are."""
    return folder / VERSIONS / version.folder


def version_name(version: int, digest: str) -> str:
    """The name of a version's folder; `digest` is that of its manifest."""
    return f"{version}-{digest[:12]}"


def _version(value: object, where: str) -> InstalledVersion:
    values = object_of(value, where, set(InstalledVersion.__dataclass_fields__))
    if not is_count(values["version"], least=1) or not all(is_text(values[name]) for name in ("digest", "signer")):
        raise ReleaseError(f"{where}: {values!r:.120}; expected a version, its digest and its signer")
    if "/" in check_path(values["folder"]):
        raise ReleaseError(f"{where}: {values['folder']!r:.80}; expected the name of a folder")
    return InstalledVersion(**values)
