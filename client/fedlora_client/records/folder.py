"""Which files of a folder are data, and for what: by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedlora.errors import DataError

from fedlora_client.records.containers import HEAD_BYTES, refused
from fedlora_client.records.data_file import FORMATS, format_of, stem

Part = Literal["train", "valid", "test"]
_WORDS: dict[str, Part] = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "eval": "valid", "evaluation": "valid", "test": "test", "testing": "test",
}  # fmt: skip
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
_WHOLE = re.compile(rf"({_WORD})(?:[-_.]?\d.*)?")  # train, train-00000-of-00002, train10k
_BEGINS, _ENDS = re.compile(rf"({_WORD})[-_.].*"), re.compile(rf".*[-_.]({_WORD})")
_DOCUMENTS = frozenset(
    {"authors", "changelog", "changes", "citation", "contributing", "copying", "copyright", "credits", "licence", "license",
     "notice", "readme", "requirements"}
)  # fmt: skip
_HIDDEN = (".", "~$", "__MACOSX")
_REFUSED = "it is "  # how the words on a file begin that is data, and cannot be read
_MOST_NAMED = 20  # files that are told by their names


@dataclass(slots=True)
class Folder:
    """The files of a folder: those whose examples are trained on, those that are held out, and those that are neither.

    Where `held_out` is empty, a part of each file that is trained on is held out.
    """

    train: list[Path] = field(default_factory=list)
    held_out: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # by the reason
    is_named: bool = False  # whether the files to train on are called so

    def notices(self, place: Path) -> list[str]:
        """What was left out, a sentence for each reason."""
        told = []
        for reason, files in self.left_out.items():
            names = [str(file.relative_to(place)) for file in files]
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            told.append(f"{place}: left out: {', '.join(names[:_MOST_NAMED])}{more}: {reason}")
        return told


def data_files(place: Path) -> Folder:
    """What the files below a folder are for. Raises DataError where none is to train on."""
    folder, parts = Folder(), {"train": list[Path](), "valid": list[Path](), "test": list[Path]()}
    others: list[Path] = []
    documents: list[Path] = []
    for file in _files(place):
        if format_of(file) is None:
            what = _what(file)
            if _WORDS.get(file.name.lower().split(".")[0]) == "train" and what.startswith(_REFUSED):
                raise DataError(f"{file}: {what}")
            folder.left_out[what].append(file)
        elif (part := part_of(file, place)) is not None:
            parts[part].append(file)
        elif stem(file).lower() in _DOCUMENTS and format_of(file) == "text":
            documents.append(file)
        else:
            others.append(file)
    if not others and not any(parts.values()):
        others, documents = documents, []
    _leave(folder, documents, "it is about the data, not data")
    folder.is_named = bool(parts["train"])
    if parts["train"]:
        names = "a file is called so that it is to train on (train)"
        _leave(folder, others, f"{names}; name them train-... too, or put them elsewhere")
    folder.train = parts["train"] or others
    folder.held_out = parts["valid"] or parts["test"]
    if parts["valid"]:
        _leave(folder, parts["test"], "a test set is never trained on, and what is held out is the validation set")
    if not folder.train:
        raise DataError(_nothing(place, folder))
    return folder


def part_of(file: Path, place: Path) -> Part | None:
    """What the name of a file says that it is for, or else that of a folder around it."""
    name = stem(file).lower()
    found = _WHOLE.fullmatch(name)
    if not found and format_of(file) != "text":  # a text of somebody's may be called dev-notes.txt
        found = _BEGINS.fullmatch(name) or _ENDS.fullmatch(name)
    if found:
        return _WORDS[found[1]]
    around = (_WORDS.get(folder.lower()) for folder in reversed(file.relative_to(place).parts[:-1]))
    return next((part for part in around if part), None)


def is_hidden(name: str) -> bool:
    return name.startswith(_HIDDEN)


def is_document(file: Path) -> bool:
    """Whether a file is about the data beside it."""
    return stem(file).lower() in _DOCUMENTS


def _files(place: Path) -> Iterator[Path]:
    for file in sorted(place.rglob("*")):
        if not any(map(is_hidden, file.relative_to(place).parts)) and file.is_file():
            yield file


def _what(file: Path) -> str:
    """What a file is that is not read."""
    try:
        with file.open("rb") as opened:
            what = refused(opened.read(HEAD_BYTES), file)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return f"{_REFUSED}{what}" if what else f"neither text nor records, by its name (those end in {', '.join(FORMATS)})"


def _leave(folder: Folder, files: list[Path], reason: str) -> None:
    if files:
        folder.left_out[reason] += files


def _nothing(place: Path, folder: Folder) -> str:
    if folder.held_out:
        names = ", ".join(file.name for file in folder.held_out[:5])
        return (
            f"{place}: only {names} to measure on, nothing to train on; add a file called train, or name one "
            "file to have it split"
        )
    first, *others = (f"*{suffix}" for suffix in FORMATS)
    told = "; ".join(notice.removeprefix(f"{place}: ") for notice in folder.notices(place))
    return f"{place}: no {first} file below it, nor {', '.join(others)}{'; ' + told if told else ''}; give this device data"
