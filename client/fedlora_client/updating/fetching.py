"""The newest release of a channel, fetched by The Update Framework's own client and verified before any of it counts.

What is known of the repository is worked on in a copy, which takes the place of the old one, whole and synced, once a
refresh has succeeded; a release's files are gathered aside, and become a version's folder once they are all sound.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.errors import AtRestError, ReleaseError
from fedlora.exported.inputs import digest_of, input_values
from fedlora.files.at_rest import read_plain, wrap
from fedlora.files.atomic import whole_directory
from fedlora.files.temporary import own_folder
from fedlora.peft.for_base import adapter_of
from fedlora.release.acceptance import check_acceptable
from fedlora.release.channels import METADATA, TARGETS, channel_target, difference_target, file_target
from fedlora.release.difference import applied
from fedlora.release.folder import adapter_paths, check_files
from fedlora.release.installed import VERSIONS, Installed, InstalledVersion, version_folder, version_name
from fedlora.release.layout import ADAPTER, ENVELOPE, MAX_FILE_BYTES, WEIGHTS_PATH
from fedlora.release.manifest import ReleaseManifest
from fedlora.release.sealed import MAX_ENVELOPE_BYTES, SignedRelease, open_release
from tuf.api.exceptions import DownloadError, RepositoryError, SlowRetrievalError
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from fedlora_client.updating.bounded_fetch import BoundedFetcher, at_most
from fedlora_client.updating.settings import MAX_ROOT_BYTES, UpdateSettings

log = logging.getLogger("fedlora.update")
_TUF, _ROOT = "tuf", "root.json"
_CONFIG = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=0,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
)


@dataclass(frozen=True, slots=True)
class Mirror:
    """A repository whose metadata are verified and in time."""

    updater: Updater
    url: str

    def target(self, path: str) -> TargetFile:
        """What the repository says of a file. Raises ReleaseError where it has none."""
        found = self.updater.get_targetinfo(path)
        if found is None:
            raise ReleaseError(
                f"{self.url}: gives out no {path}; expected it to: publish the release there, or name another"
            )
        return found

    def download(self, target: TargetFile, to: Path) -> None:
        self.updater.download_target(target, str(to))


@contextmanager
def refreshed(settings: UpdateSettings) -> Iterator[Mirror]:
    """The repository, once its metadata are verified; they are kept from then on. Raises ReleaseError for all that it does
    wrong, in the block as well."""
    known = settings.place / _TUF
    with _told(settings.url), at_most(settings.timeout_s), own_folder("tuf", settings.place) as copy:
        work = copy / "metadata"
        if (known / _ROOT).is_file():
            shutil.copytree(known, work, symlinks=True)
        else:
            work.mkdir()
        url, fetcher = settings.url.rstrip("/"), BoundedFetcher(settings.timeout_s)
        updater = Updater(
            str(work), f"{url}/{METADATA}/", None, f"{url}/{TARGETS}/",
            fetcher=fetcher, config=_CONFIG, bootstrap=settings.pinned_root(),
        )  # fmt: skip
        with closing(fetcher):
            updater.refresh()
            with whole_directory(known, replace=_ROOT) as aside:
                shutil.copytree(work, aside, symlinks=True, dirs_exist_ok=True)
            yield Mirror(updater, settings.url)


def newest_release(
    mirror: Mirror, settings: UpdateSettings, installed: Installed, base: BasePack, now: datetime | None = None
) -> tuple[SignedRelease, bytes]:
    """What the channel gives out, where it may be taken here, and its release.json. Raises FedloraError."""
    target = mirror.target(channel_target(settings.channel, settings.name))
    if target.length > MAX_ENVELOPE_BYTES:
        raise ReleaseError(f"{target.path}: {target.length} bytes; at most {MAX_ENVELOPE_BYTES} are read")
    with own_folder("release", settings.place) as folder:
        mirror.download(target, folder / ENVELOPE)
        content = (folder / ENVELOPE).read_bytes()
    release = open_release(content, settings.trusted(), f"{settings.url}: {target.path}")
    check_acceptable(
        release.manifest,
        name=settings.name,
        base_fingerprint=base.fingerprint,
        newest=installed.newest,
        max_bytes=settings.max_mb << 20,
        now=now or datetime.now(UTC),
    )
    if release.manifest.version == installed.newest and release.digest != installed.newest_digest:
        raise ReleaseError(
            f"release {settings.name} {release.manifest.version}: another one of this version was taken here; expected a "
            "higher version for another content"
        )
    return release, content


def fetch_version(
    mirror: Mirror, settings: UpdateSettings, release: SignedRelease, envelope: bytes, base: BasePack
) -> Path:
    """The folder of a version with its adapter, fetched where it is not there, and verified. Raises FedloraError."""
    manifest = release.manifest
    folder = version_folder(settings.place, InstalledVersion.of(release))
    paths = adapter_paths(manifest)
    if folder.is_dir():
        check_files(folder, manifest, paths)
    else:
        with whole_directory(folder) as aside:
            (aside / ADAPTER).mkdir()
            for path in paths:
                target = mirror.target(file_target(manifest.name, manifest.version, path))
                entry = manifest.files[path]
                if (target.length, target.hashes.get("sha256")) != (entry.size_bytes, entry.sha256):
                    raise ReleaseError(
                        f"{target.path}: the repository and the manifest tell of two files; expected one"
                    )
                if not _from_parent(mirror, settings, manifest, path, aside / path):
                    mirror.download(target, aside / path)
            (aside / ENVELOPE).write_bytes(envelope)
            check_files(aside, manifest, paths)
            check_adapter(aside, manifest, base, settings.max_mb << 20)
            wrap(aside / WEIGHTS_PATH)
    return folder


def _from_parent(mirror: Mirror, settings: UpdateSettings, manifest: ReleaseManifest, path: str, to: Path) -> bool:
    """Make a file of the parent's that is here and the difference to it; whether it is what was signed, to the bit.

    Whatever is wrong with either costs time: the whole file is fetched then.
    """
    entry, parent = manifest.files[path], manifest.parent
    if parent is None or path != WEIGHTS_PATH:
        return False
    before = settings.place / VERSIONS / version_name(parent.version, parent.manifest_sha256) / path
    target = mirror.updater.get_targetinfo(difference_target(manifest.name, manifest.version, parent.version, path))
    if target is None or target.length >= entry.size_bytes or not before.is_file():
        return False
    try:
        with own_folder("difference", settings.place) as folder:
            mirror.download(target, folder / "difference")
            made = applied(read_plain(before, MAX_FILE_BYTES), (folder / "difference").read_bytes())
    except SlowRetrievalError:
        raise
    except (DownloadError, RepositoryError, AtRestError, OSError, ValueError) as error:
        log.warning("%s: the difference to version %d is of no use: %s", path, parent.version, error)
        return False
    if hashlib.sha256(made).hexdigest() != entry.sha256:
        log.warning("%s: the difference to version %d makes another file of it", path, parent.version)
        return False
    to.write_bytes(made)
    return True


def check_adapter(folder: Path, manifest: ReleaseManifest, base: BasePack, max_bytes: int) -> None:
    """Raise FedloraError unless the adapter is sound, finite, of this base, the one that was signed, and no larger."""
    adapter, _ = adapter_of(folder / ADAPTER, base, max_bytes=max_bytes)
    digest = digest_of(input_values(adapter))
    if digest != manifest.adapter.values_sha256:
        raise ReleaseError(
            f"{folder / ADAPTER}: the digest of its values is {digest:.16}; expected {manifest.adapter.values_sha256:.16}"
        )


@contextmanager
def _told(url: str) -> Iterator[None]:
    """The framework's own errors, in our words."""
    try:
        yield
    except DownloadError as error:
        cause = error.__cause__ or error
        raise ReleaseError(
            f"{url}: cannot be fetched: {type(cause).__name__}: {cause}; try again later, or name another mirror"
        ) from None
    except RepositoryError as error:
        raise ReleaseError(
            f"{url}: {type(error).__name__}: {error}; expected metadata that the pinned root vouches for; nothing changed"
        ) from None
