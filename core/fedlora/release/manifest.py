"""The manifest of a release: what it is, what it belongs to, where it comes from, and the digest of every file.

It is JSON in its one form (RFC 8785), and an unknown key is refused: what a reader does not understand was signed all the
same. Of devices and examples there are counts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from fedlora.errors import ReleaseError
from fedlora.identity.canonical import canonical, read_canonical
from fedlora.release.canary import Canary
from fedlora.release.checked import is_number, object_of
from fedlora.release.layout import MAX_FILES, check_name, check_path
from fedlora.release.manifest_parts import (
    FileEntry,
    MadeBy,
    Parent,
    Privacy,
    ReleasedAdapter,
    ReleasedBase,
    ReleasedRun,
    check_text,
    check_version,
)

FORMAT, FORMAT_VERSION = "fedlora-release", 1
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseManifest:
    """One release. Raises ReleaseError, naming the field, for one that cannot be."""

    name: str
    version: int  # it only grows
    issued: str  # UTC, as 2026-11-30T12:00:00Z
    expires: str  # the same; from then on no device takes it
    base: ReleasedBase
    adapter: ReleasedAdapter
    run: ReleasedRun
    files: Mapping[str, FileEntry]
    evaluation: Mapping[str, float] = field(
        default_factory=dict
    )  # held-out loss over the devices: mean, worst tenth ...
    privacy: Privacy | None = None  # None: the run had no budget
    canary: Canary | None = None  # None: nothing is tried before it is put into use
    parent: Parent | None = None  # None: the first
    made_by: MadeBy

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)
        if moment(self.issued, "issued") >= moment(self.expires, "expires"):
            raise ReleaseError(f"expires: {self.expires}; it must be after issued, {self.issued}")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise ReleaseError(f"files: {len(self.files)}; expected 1 to {MAX_FILES}")
        for path in self.files:
            check_path(path)
        folded = {path.casefold() for path in self.files}
        if len(folded) != len(self.files):  # one file on a disk that does not tell a from A
            raise ReleaseError(
                "files: two differ in upper and lower case alone; expected paths that every disk tells apart"
            )
        for name, score in self.evaluation.items():
            check_text("evaluation", name)
            if not is_number(score):
                raise ReleaseError(f"evaluation: {name} is {score!r:.40}; expected a finite number")
        if self.parent is not None and self.parent.version >= self.version:
            raise ReleaseError(
                f"parent: version {self.parent.version}; it must be below the release's own, {self.version}"
            )

    def is_expired(self, now: datetime) -> bool:
        """Whether no device takes it any more at `now`, which has a time zone."""
        return now >= moment(self.expires, "expires")

    def to_json(self) -> bytes:
        """The manifest in its one form."""
        return canonical({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})


_PARTS: Mapping[str, type] = {
    "base": ReleasedBase, "adapter": ReleasedAdapter, "run": ReleasedRun, "privacy": Privacy, "parent": Parent,
    "made_by": MadeBy,
}  # fmt: skip


def manifest_from_json(content: bytes, where: str) -> ReleaseManifest:
    """The inverse of `to_json`. Raises ReleaseError or IdentityError, which begin with `where`, for anything else."""
    value = read_canonical(content, where)
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("format_version") != FORMAT_VERSION:
        raise ReleaseError(
            f"{where}: expected format {FORMAT}, version {FORMAT_VERSION}; update fedlora, or make it again"
        )
    try:
        values = object_of(value, "the manifest", {"format", "format_version", *_names(ReleaseManifest)})
        del values["format"], values["format_version"]
        for name, kind in _PARTS.items():
            values[name] = None if values[name] is None else _part(kind, values[name], name)
        values["canary"] = None if values["canary"] is None else Canary.from_json(values["canary"])
        files = object_of(values["files"], "files")
        values["files"] = {path: _part(FileEntry, entry, f"files: {path!a:.140}") for path, entry in files.items()}
        values["evaluation"] = object_of(values["evaluation"], "evaluation")
        for name in ("base", "adapter", "run", "made_by"):
            if values[name] is None:
                raise ReleaseError(f"{name} is null; expected an object")
        return ReleaseManifest(**values)
    except ReleaseError as error:
        raise ReleaseError(f"{where}: {error}") from None


def moment(text: str, where: str) -> datetime:
    """A moment as a manifest writes it, with its time zone. Raises ReleaseError for any other text."""
    try:
        time = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except (ValueError, TypeError):
        raise ReleaseError(f"{where}: {text!r:.60}; expected a time in UTC, as 2026-11-30T12:00:00Z") from None
    if written(time) != text:
        raise ReleaseError(f"{where}: {text!r:.60}; expected a time in UTC, as 2026-11-30T12:00:00Z")
    return time


def written(time: datetime) -> str:
    """A moment with a time zone, as a manifest writes it."""
    return time.astimezone(UTC).strftime(_TIME)


def _part(kind: type, value: object, where: str) -> Any:
    try:
        values = object_of(value, "it", set(_names(kind)))
        if kind is ReleasedAdapter:
            targets = values["target_modules"]
            if not isinstance(targets, list):
                raise ReleaseError(f"target_modules: {targets!r:.80}; expected a list of names")
            values["target_modules"] = tuple(targets)
        if kind is MadeBy:
            values["versions"] = object_of(values["versions"], "versions")
        return kind(**values)
    except ReleaseError as error:
        raise ReleaseError(f"{where}: {error}") from None


def _names(kind: type) -> list[str]:
    return [each.name for each in fields(kind)]
