"""The metadata of a repository that devices are given now, verified as a device verifies them before they are signed anew.

The folder is given out: whoever writes into it on the web's side could else have what they wrote there signed by the next
release. Roots are followed from the first, which `fedlora publish init` keeps beside the keys; nothing has to be in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedlora.errors import IdentityError, ReleaseError
from fedlora.files.bounded import read_bounded
from fedlora.numbered import is_number
from fedlora.release.channels import METADATA
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

FIRST_ROOT = "1.root.json"  # in the metadata, and beside the keys
# Beside the keys, with the number of the root before: from before a new one is written until its keys have signed all.
RENEWING = "renewing"
MAX_BYTES = 1 << 24  # of one file of metadata
_COPY = "copy the repository again"
_S = TypeVar("_S", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The metadata that devices are given now."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]


def newest_metadata(repository: Path, keys: Path | None = None) -> Newest:
    """What the repository in a folder gives out; `keys` is the folder of its keys, where the first root lies.

    Raises ReleaseError where it is none, or something in it is not signed as its roots say, and IdentityError where the
    keys are another repository's.
    """
    folder = repository / METADATA
    roots = list(_roots(folder, keys))
    trusted = roots[_last_whole(keys, len(roots)) - 1 :]
    place = folder / "timestamp.json"
    timestamp, content = _read(place, Timestamp)
    _verify(trusted, Timestamp.type, timestamp, place)
    place, meta = folder / f"{timestamp.signed.snapshot_meta.version}.snapshot.json", timestamp.signed.snapshot_meta
    snapshot, content = _read(place, Snapshot)
    _verify(trusted, Snapshot.type, snapshot, place, meta, content)
    found = snapshot.signed.meta.get("targets.json")
    if found is None:
        raise ReleaseError(f"{place}: it tells of no targets.json; {_COPY}")
    place = folder / f"{found.version}.targets.json"
    targets, content = _read(place, Targets)
    _verify(trusted, Targets.type, targets, place, found, content)
    return Newest(root=roots[-1], targets=targets, snapshot=snapshot, timestamp=timestamp)


def _last_whole(keys: Path | None, newest: int) -> int:
    """The root whose keys have signed all that is given out: the newest, unless a renewal was cut off."""
    path = None if keys is None else keys / RENEWING
    if path is None or not path.is_file():
        return newest
    text = path.read_text(encoding="ascii", errors="replace").strip()
    return max(1, min(int(text), newest)) if is_number(text) else newest


def _roots(folder: Path, keys: Path | None) -> Iterator[Metadata[Root]]:
    """The roots from the first on, each signed by itself and by the one before."""
    root, content = _read(folder / FIRST_ROOT, Root)
    pinned = None if keys is None else keys / FIRST_ROOT
    if pinned is not None and pinned.is_file() and _content(pinned) != content:
        raise IdentityError(
            f"{folder / FIRST_ROOT}: not the first root that {keys} holds the keys of; name this repository's own with "
            "--keys, or copy the repository again"
        )
    _verify([root], Root.type, root, folder / FIRST_ROOT)
    yield root
    number = 2
    while (place := folder / f"{number}.root.json").is_file():
        following, _ = _read(place, Root)
        for signer in (root, following):
            _verify([signer], Root.type, following, place)
        if following.signed.version != number:
            raise ReleaseError(f"{place}: it says that it is root {following.signed.version}; {_COPY}")
        yield following
        root, number = following, number + 1


def _verify(
    roots: Sequence[Metadata[Root]], role: str, metadata: Metadata[_S], place: Path, meta: MetaFile | None = None,
    content: bytes = b"",
) -> None:  # fmt: skip
    """Raise ReleaseError unless metadata are signed as the last of `roots` says, or one before, and are those of `meta`."""
    told = ""
    for root in reversed(roots):
        try:
            root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            if meta is not None:
                meta.verify_length_and_hashes(content)
                if metadata.signed.version != meta.version:
                    raise RepositoryError(f"it is version {metadata.signed.version}, and not {meta.version}")
            return
        except (RepositoryError, ValueError) as error:
            told = told or f"{type(error).__name__}: {error}"
    raise ReleaseError(f"{place}: {told}; expected what this repository's own keys signed: {_COPY}")


def _read(path: Path, kind: type[_S]) -> tuple[Metadata[_S], bytes]:
    content = _content(path)
    try:
        metadata: Metadata[_S] = Metadata.from_bytes(content)
    except (DeserializationError, RepositoryError) as error:
        raise ReleaseError(f"{path}: not metadata of The Update Framework: {error}; {_COPY}") from None
    if not isinstance(metadata.signed, kind):
        raise ReleaseError(f"{path}: metadata of {metadata.signed.type}; {_COPY}")
    return metadata, content


def _content(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_BYTES)
    except OSError:
        raise ReleaseError(f"{path}: cannot be read; expected a repository, as fedlora publish init makes it") from None
