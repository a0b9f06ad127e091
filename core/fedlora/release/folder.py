"""The files of a release in a folder: each is a plain file and what its manifest says, and no other is beside them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from fedlora.counted import counted
from fedlora.errors import AtRestError, ReleaseError
from fedlora.files.at_rest import plain_parts, plain_size_of
from fedlora.identity.keys import PublicKey
from fedlora.release.layout import ADAPTER, ENVELOPE, MAX_FILES, UNLISTED, check_path
from fedlora.release.manifest import ReleaseManifest
from fedlora.release.manifest_parts import FileEntry
from fedlora.release.sealed import SignedRelease, open_release, read_envelope

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link is followed, no pipe waited for


def read_release(folder: Path, trusted: Iterable[PublicKey], paths: Collection[str] | None = None) -> SignedRelease:
    """The release in a folder, signed by one of `trusted`, with every listed file, or those of `paths`, as it was signed.

    Raises IdentityError, SignatureError and ReleaseError, which name what is wrong.
    """
    release = open_release(read_envelope(folder), trusted, str(folder / ENVELOPE))
    check_files(folder, release.manifest, paths)
    return release


def read_plain_release(folder: Path, trusted: Iterable[PublicKey]) -> SignedRelease:
    """As `read_release`, of files that are given to others: each lies there plain. Raises ReleaseError otherwise."""
    release = read_release(folder, trusted)
    for path, entry in release.manifest.files.items():
        if entry_of(folder, path) != entry:
            raise ReleaseError(
                f"{folder / path}: encrypted at rest, and nobody else could read it; expected a plain file: decrypt a "
                "copy of the release with: fedlora key rewrap COPY --old SOURCE --plain"
            )
    return release


def read_adapter_release(folder: Path, trusted: Iterable[PublicKey]) -> SignedRelease:
    """The same for the adapter in PEFT's format alone, which is what is served; other files need not be there."""
    release = open_release(read_envelope(folder), trusted, str(folder / ENVELOPE))
    check_files(folder, release.manifest, adapter_paths(release.manifest))
    return release


def check_files(folder: Path, manifest: ReleaseManifest, paths: Collection[str] | None = None) -> None:
    """Raise ReleaseError unless each listed file is there as it was signed, and no other is.

    With `paths` only these need be there, as on a device that takes one form of the adapter alone.
    """
    there = set(_files(folder))
    listed = set(manifest.files)
    wanted = listed if paths is None else set(paths)
    if missing := sorted(wanted - there):
        raise ReleaseError(
            f"{folder}: {missing[0]} is missing; expected all of {counted(len(wanted), 'file')}: copy the release again"
        )
    if strange := sorted(there - listed - set(UNLISTED)):
        raise ReleaseError(f"{folder}: {strange[0]!a} is not part of the release; remove it")
    for path in sorted(there & listed):
        check_file(folder, path, manifest.files[path])


def check_file(folder: Path, path: str, entry: FileEntry) -> None:
    """Raise ReleaseError unless a file is as it was signed, wherever it is encrypted at rest."""
    with opened_within(folder, path) as file:
        try:
            size = plain_size_of(file, folder / path)
            if size != entry.size_bytes:
                raise ReleaseError(
                    f"{folder / path}: {size} bytes; expected {entry.size_bytes}: it is not what was signed"
                )
            digest = _digest(file, folder / path)
        except AtRestError as error:
            raise ReleaseError(str(error)) from None
    if digest != entry.sha256:
        raise ReleaseError(
            f"{folder / path}: sha256 {digest:.16}; expected {entry.sha256:.16}: it is not what was signed"
        )


def entry_of(folder: Path, path: str) -> FileEntry:
    """What the manifest says of a file."""
    with opened_within(folder, path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, size_bytes=os.fstat(file.fileno()).st_size)


def _digest(file: BufferedReader, path: Path) -> str:
    digest = hashlib.sha256()
    for part in plain_parts(file, path):
        digest.update(part)
    return digest.hexdigest()


def listed_files(folder: Path) -> dict[str, FileEntry]:
    """{path: entry} of all files that a manifest lists. Raises ReleaseError for a file that cannot be one's."""
    return {path: entry_of(folder, check_path(path)) for path in sorted(_files(folder)) if path not in UNLISTED}


def adapter_paths(manifest: ReleaseManifest) -> list[str]:
    """The files of the adapter in PEFT's format. Raises ReleaseError where there are none."""
    found = [path for path in manifest.files if path.startswith(f"{ADAPTER}/")]
    if not found:
        raise ReleaseError(f"files: none in {ADAPTER}/; expected the adapter in PEFT's format: make the release again")
    return found


@contextmanager
def opened_within(folder: Path, path: str) -> Iterator[BufferedReader]:
    """A plain file of a release, opened through its folders one by one, none of which is a link. Raises ReleaseError."""
    *parents, name = check_path(path).split("/")
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for parent in parents:
            descriptors.append(os.open(parent, _FLAGS | os.O_DIRECTORY, dir_fd=descriptors[-1]))
        file = os.fdopen(os.open(name, _FLAGS, dir_fd=descriptors[-1]), "rb")
    except OSError as error:
        raise ReleaseError(
            f"{folder / path}: cannot be read: {error.strerror}; expected a plain file in plain folders, no link"
        ) from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ReleaseError(f"{folder / path}: expected a plain file")
        yield file


def _files(folder: Path) -> Iterator[str]:
    """The path of everything in a folder that is no folder itself. Raises ReleaseError for too much, or a link to one."""
    count = 0
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise):
            for name in [*folders, *names]:
                count += 1
                path = Path(parent, name)
                if count > 4 * MAX_FILES:
                    raise ReleaseError(f"{folder}: more than {4 * MAX_FILES} files; expected a release")
                if path.is_symlink():
                    raise ReleaseError(f"{path}: a link; expected the release's own files")
            for name in names:
                yield Path(parent, name).relative_to(folder).as_posix()
    except OSError as error:
        raise ReleaseError(f"{folder}: cannot be read: {error.strerror}; expected a release") from None


def _raise(error: OSError) -> None:
    raise error
