"""The canary of a release: what a device tries before it puts the adapter into use, and what must come of it.

A decoder reads texts, and its mean loss over each may be so large at most; an encoder with labels must give each text the
label that is expected. Whoever makes the release writes them; they are signed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedlora.errors import ReleaseError
from fedlora.files.documents import read_object
from fedlora.release.checked import is_number, object_of

MAX_TEXTS, MAX_CHARACTERS = 64, 4000
_EXPECTED = 'a canary: {"texts": [{"text": "...", "max_loss": 3.5}, ...]} or entries of text and label'


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryText:
    """One text, and what must come of it: a loss, or a label."""

    text: str
    max_loss: float | None = None  # nats per token, the mean over the text's tokens but the first
    label: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not 0 < len(self.text) <= MAX_CHARACTERS:
            raise ReleaseError(f"canary: text {self.text!r:.60}; expected 1 to {MAX_CHARACTERS} characters")
        if (self.max_loss is None) == (self.label is None):
            raise ReleaseError(f"canary: text {self.text!r:.60}: expected either max_loss or label")
        if self.max_loss is not None and not (is_number(self.max_loss) and self.max_loss > 0):
            raise ReleaseError(f"canary: max_loss {self.max_loss!r:.40}; expected a finite number above 0")
        if self.label is not None and not (isinstance(self.label, str) and 0 < len(self.label) <= MAX_CHARACTERS):
            raise ReleaseError(f"canary: label {self.label!r:.60}; expected the name of a label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """All texts, each of which must come out as it should."""

    texts: tuple[CanaryText, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.texts) <= MAX_TEXTS:
            raise ReleaseError(f"canary: {len(self.texts)} texts; expected 1 to {MAX_TEXTS}")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises ReleaseError for what is no canary."""
        entries = object_of(value, "canary", {"texts"})["texts"]
        if not isinstance(entries, list):
            raise ReleaseError(f"canary: texts is {type(entries).__name__}; expected a list")
        return cls(texts=tuple(_text(entry) for entry in entries))


def read_canary(path: Path) -> Canary:
    """A canary that somebody wrote by hand. Raises ReleaseError, naming the file."""
    try:
        return Canary.from_json(read_object(path, ReleaseError, _EXPECTED, max_bytes=1 << 20))
    except ReleaseError as error:
        told = str(error)
        raise ReleaseError(told if told.startswith(str(path)) else f"{path}: {told}") from None


def _text(value: object) -> CanaryText:
    values: Mapping[str, Any] = object_of(value, "canary: a text")
    unknown = sorted(values.keys() - {"text", "max_loss", "label"})
    if unknown or "text" not in values:
        raise ReleaseError(
            f"canary: {', '.join(map(ascii, unknown)) or 'no text'}; expected text, and max_loss or label"
        )
    return CanaryText(**values)
