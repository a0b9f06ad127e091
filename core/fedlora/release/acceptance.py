"""Whether a device takes a release that is signed and whole: it is newer, in time, and for the base that is there."""

from __future__ import annotations

from datetime import datetime

from fedlora.errors import ReleaseError
from fedlora.release.manifest import ReleaseManifest


def check_acceptable(
    manifest: ReleaseManifest,
    *,
    name: str,
    base_fingerprint: str,
    newest: int,  # the largest version that was ever taken here; 0: none
    max_bytes: int,
    now: datetime,
) -> None:
    """Raise ReleaseError for another name, an older version, one that has expired, another base, or too many bytes."""
    told = f"release {manifest.name} {manifest.version}"
    if manifest.name != name:
        raise ReleaseError(f"{told}: expected a release of {name}")
    if manifest.version < newest:
        raise ReleaseError(
            f"{told}: version {newest} was taken here already; expected none below it: a rollback is refused"
        )
    if manifest.is_expired(now):
        raise ReleaseError(
            f"{told}: expired on {manifest.expires}, by this machine's clock; expected one that is still valid"
        )
    if manifest.base.fingerprint != base_fingerprint:
        raise ReleaseError(
            f"{told}: for the base {manifest.base.fingerprint:.16}; expected one for {base_fingerprint:.16}, which is here"
        )
    size = sum(entry.size_bytes for entry in manifest.files.values())
    if size > max_bytes:
        raise ReleaseError(f"{told}: {size} bytes in all; at most {max_bytes} are taken")
