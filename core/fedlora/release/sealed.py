"""A release as it is signed: the manifest in a DSSE envelope, `release.json`, and whom it is taken from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import ReleaseError
from fedlora.files.bounded import read_bounded
from fedlora.identity.envelope import opened, seal
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.release.layout import ENVELOPE
from fedlora.release.manifest import ReleaseManifest, manifest_from_json

PAYLOAD_TYPE = "application/vnd.fedlora.release.v1+json"
MAX_ENVELOPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRelease:
    """A manifest, and whose it is: a signature of both halves of a pair that is trusted holds."""

    manifest: ReleaseManifest
    signer: str  # the id of the pair
    digest: str  # sha256 of the manifest in its one form: it names the release


def seal_release(manifest: ReleaseManifest, key: SigningKey) -> bytes:
    """The content of release.json."""
    return seal(manifest.to_json(), PAYLOAD_TYPE, key)


def open_release(content: bytes, trusted: Iterable[PublicKey], where: str) -> SignedRelease:
    """What release.json holds. Raises IdentityError, SignatureError or ReleaseError, which begin with `where`."""
    payload, signer = opened(content, PAYLOAD_TYPE, trusted, max_bytes=MAX_ENVELOPE_BYTES, where=where)
    manifest = manifest_from_json(payload, where)
    return SignedRelease(manifest=manifest, signer=signer.keyid, digest=hashlib.sha256(payload).hexdigest())


def read_envelope(folder: Path) -> bytes:
    """The content of FOLDER/release.json. Raises ReleaseError where there is none that can be read."""
    path = folder / ENVELOPE
    try:
        if path.is_symlink():
            raise ReleaseError(f"{path}: a link; expected the release's own file")
        return read_bounded(path, MAX_ENVELOPE_BYTES)
    except OSError as error:
        raise ReleaseError(
            f"{path}: cannot be read: {error.strerror}; expected a release, as fedlora release makes it"
        ) from None
