"""The parts of a release's manifest, each validated when it is made. Raises ReleaseError, naming the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.errors import ConfigError, ReleaseError
from fedlora.lora.config import LoraConfig
from fedlora.release.checked import is_count, is_number, is_text
from fedlora.release.layout import MAX_FILE_BYTES

MAX_VERSION = (1 << 53) - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a release."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        check_digest("sha256", self.sha256)
        if not is_count(self.size_bytes) or self.size_bytes > MAX_FILE_BYTES:
            raise ReleaseError(f"size_bytes: {self.size_bytes!r:.40}; expected 0 to {MAX_FILE_BYTES}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedBase:
    """The base that the adapter is for."""

    fingerprint: str
    source: str  # what it was packed from, by name
    tokenizer_sha256: str

    def __post_init__(self) -> None:
        check_digest("fingerprint", self.fingerprint)
        check_digest("tokenizer_sha256", self.tokenizer_sha256)
        check_text("source", self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedAdapter:
    """The adapter itself."""

    values_sha256: str  # of its values, however they are stored: what a service calls its digest
    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    modules: int  # that it has a pair of matrices for

    def __post_init__(self) -> None:
        check_digest("values_sha256", self.values_sha256)
        try:
            LoraConfig(rank=self.rank, alpha=self.alpha, use_rslora=self.use_rslora, target_modules=self.target_modules)
        except ConfigError as error:
            raise ReleaseError(str(error)) from None
        if not all(is_text(name) for name in self.target_modules) or not is_count(self.modules, least=1):
            raise ReleaseError(f"modules: {self.modules!r:.40}; expected a number of at least 1, and names of modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedRun:
    """The federated run that made it. Counts only: nothing names a device."""

    run: str
    round: int
    method: str
    devices: int  # whose updates the round took
    examples: int  # that these trained on; 0 where they did not tell

    def __post_init__(self) -> None:
        for name in ("run", "method"):
            check_text(name, getattr(self, name))
        for name in ("round", "devices", "examples"):
            if not is_count(getattr(self, name)):
                raise ReleaseError(f"{name}: {getattr(self, name)!r:.40}; expected a number of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What the run spent of its budget of differential privacy."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise ReleaseError(f"{name}: {getattr(self, name)!r:.40}; expected a number of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The release before it."""

    version: int
    manifest_sha256: str

    def __post_init__(self) -> None:
        check_version(self.version)
        check_digest("manifest_sha256", self.manifest_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """How it was made."""

    command: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        check_text("command", self.command, 4000)
        for name, version in self.versions.items():
            check_text("versions", name)
            check_text("versions", version)


def check_digest(name: str, value: object) -> None:
    """Raise ReleaseError unless it is a sha256 in hexadecimal."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ReleaseError(f"{name}: {value!r:.80}; expected 64 hexadecimal digits")


def check_version(version: object) -> None:
    """Raise ReleaseError unless it is a version of a release."""
    if not is_count(version, least=1) or version > MAX_VERSION:  # type: ignore[operator]
        raise ReleaseError(f"version: {version!r:.40}; expected a whole number from 1 to {MAX_VERSION}")


def check_text(name: str, value: object, most: int = 400) -> None:
    """Raise ReleaseError unless it is a text that can be shown."""
    if not is_text(value, most):
        raise ReleaseError(f"{name}: {value!r:.80}; expected a text of 1 to {most} printable characters")
