"""The metadata of a repository that devices are given now, read and looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedlora.errors import ReleaseError
from fedlora.release.channels import METADATA
from tuf.api.exceptions import RepositoryError, StorageError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

_S = TypeVar("_S", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The metadata that devices are given now."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]


def newest_metadata(repository: Path) -> Newest:
    """What the repository in a folder gives out. Raises ReleaseError where it is none."""
    folder = repository / METADATA
    timestamp = _read(folder / "timestamp.json", Timestamp)
    snapshot = _read(folder / f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
    targets = _read(folder / f"{snapshot.signed.meta['targets.json'].version}.targets.json", Targets)
    numbers = [int(path.name.split(".")[0]) for path in folder.glob("[0-9]*.root.json")]
    return Newest(
        root=_read(folder / f"{max(numbers, default=1)}.root.json", Root),
        targets=targets, snapshot=snapshot, timestamp=timestamp,
    )  # fmt: skip


def _read(path: Path, kind: type[_S]) -> Metadata[_S]:
    try:
        metadata: Metadata[_S] = Metadata.from_file(str(path))
    except (StorageError, OSError):
        raise ReleaseError(f"{path}: cannot be read; expected a repository, as fedlora publish init makes it") from None
    except (DeserializationError, RepositoryError) as error:
        raise ReleaseError(
            f"{path}: not metadata of The Update Framework: {error}; copy the repository again"
        ) from None
    if not isinstance(metadata.signed, kind):
        raise ReleaseError(f"{path}: metadata of {metadata.signed.type}; copy the repository again")
    return metadata
