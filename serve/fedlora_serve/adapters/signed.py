"""Which adapters must be signed, by which release keys, and the release that vouches for one.

`PATTERN=KEY.pub` is a key for the names that fit the pattern, `KEY.pub` one for all. A name that a pattern fits has to be a
release that one of its keys signed, under the name that was signed, whatever folder it stands in: team/tone is a release
called tone. Where all must be signed, a name that no pattern fits is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fedlora.errors import AdapterError, ConfigError, IdentityError, ReleaseError
from fedlora.identity.keys import PublicKey
from fedlora.release.folder import read_adapter_release
from fedlora.release.layout import ADAPTER
from fedlora.release.sealed import SignedRelease


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseInfo:
    """The release that an adapter in a store comes from; its signature was verified."""

    name: str
    version: int
    digest: str  # of the manifest
    signer: str  # the id of the key

    @classmethod
    def of(cls, release: SignedRelease) -> ReleaseInfo:
        manifest = release.manifest
        return cls(name=manifest.name, version=manifest.version, digest=release.digest, signer=release.signer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """Where an adapter is read from, and what is said of its values."""

    path: Path
    release: ReleaseInfo
    values_sha256: str  # that were signed: what is read later is the same, or refused


class SignedNames:
    """The keys of a service, by the names that they are for."""

    def __init__(self, keys: Iterable[tuple[str, PublicKey]], *, all_must_be: bool = False) -> None:
        """`keys` are (pattern, key)."""
        self._keys, self._all_must_be = tuple(keys), all_must_be

    def covers(self, name: str) -> bool:
        """Whether there is a key for a name."""
        return any(fnmatchcase(name, pattern) for pattern, _ in self._keys)

    def vouch(self, name: str, folder: Path) -> Vouched | None:
        """The release in `folder` that vouches for an adapter of this name; None where it need not be signed.

        Raises AdapterError where it must be and is not.
        """
        trusted = [key for pattern, key in self._keys if fnmatchcase(name, pattern)]
        if not trusted:
            if self._all_must_be:
                raise AdapterError(
                    f"adapter {name}: no release key is for this name, and unsigned ones are not taken; name a key for it "
                    "with --require-signed, or load it under a name that has one"
                )
            return None
        try:
            release = read_adapter_release(folder, trusted)
        except (ReleaseError, IdentityError) as error:
            raise AdapterError(f"adapter {name}: {error}; only signed releases are taken under this name") from None
        if name.rpartition("/")[2] != release.manifest.name:
            raise AdapterError(
                f"adapter {name}: the release was signed as {release.manifest.name}; expected it under this name, or in a "
                f"folder, as in team/{release.manifest.name}"
            )
        return Vouched(
            path=folder / ADAPTER,
            release=ReleaseInfo.of(release),
            values_sha256=release.manifest.adapter.values_sha256,
        )


def read_signed_names(require_signed: Iterable[str], release_keys: Iterable[str]) -> SignedNames | None:
    """What `--require-signed` and `--release-key` say; None where they say nothing. Raises ConfigError, IdentityError."""
    required = [_pattern_and_key(text, "--require-signed") for text in require_signed]
    others = [_pattern_and_key(text, "--release-key") for text in release_keys]
    return SignedNames([*required, *others], all_must_be=bool(required)) if required or others else None


def split_key(text: str) -> tuple[str, str]:
    """(pattern, path) of [PATTERN=]PATH."""
    pattern, separator, path = text.partition("=")
    return (pattern, path) if separator and not Path(text).exists() else ("*", text)


def _pattern_and_key(text: str, option: str) -> tuple[str, PublicKey]:
    pattern, path = split_key(text)
    if not pattern or not path:
        raise ConfigError(f"{option} {text}: expected [PATTERN=]KEY.pub, such as team/*=release.pub")
    return pattern, PublicKey.read(Path(path))
