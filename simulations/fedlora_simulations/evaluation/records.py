"""The examples that are measured: a file's, or those of a folder's test set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora.config.hub_source import is_hub
from fedlora.config.sections import FieldNames
from fedlora.counted import counted
from fedlora.data.examples import Completion, Example, MultipleChoice
from fedlora.errors import ConfigError, DataError
from fedlora_client.records.arrow_rows import read_hub
from fedlora_client.records.data_file import FileContent, content_of, format_of, read_file
from fedlora_client.records.folder import is_document, is_hidden, part_of

PROMPT = "{prompt}"  # where a record's own prompt stands in a template


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is read to be measured."""

    files: tuple[str, ...]
    examples: tuple[Example, ...]
    notices: tuple[str, ...] = ()


def read_measured(place: Path, fields: FieldNames, *, template: str = "", limit: int = 0) -> Measured:
    """All of a file; of a folder the files called test, else valid, else all where none is called train.

    `template` stands around the prompts, the first `limit` examples are kept (0: all). Raises DataError.
    """
    examples: list[Example] = []
    notices = []
    files = [place] if is_hub(str(place)) else _files(place) if place.is_dir() else [place]
    try:
        for file in files:
            content = _of_hub(str(file), fields) if is_hub(str(file)) else read_file(file, fields)
            examples += content.all
            notices += [f"{file.name}: {notice}" for notice in content.notices]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}; let this user read it") from None
    if not examples:
        raise DataError(f"{place}: no text in {counted(len(files), 'file')}; give one with data to measure on")
    chosen = examples[:limit] if limit else examples
    if len(chosen) < len(examples):
        notices.append(f"the first {len(chosen)} of {counted(len(examples), 'example')}")
    return Measured(
        files=tuple(file.name for file in files), examples=tuple(_prompted(chosen, template)), notices=tuple(notices)
    )


def _of_hub(source: str, fields: FieldNames) -> FileContent:
    """The split test, or else validation; all of one that has no such split."""
    train, test = read_hub(source, fields)
    return content_of(test or train)


def _files(place: Path) -> list[Path]:
    readable = [
        file for file in sorted(place.rglob("*"))
        if file.is_file() and format_of(file) and not any(map(is_hidden, file.relative_to(place).parts))
    ]  # fmt: skip
    parts = [(part_of(file, place), file) for file in readable]
    for wanted in ("test", "valid"):
        if found := [file for part, file in parts if part == wanted]:
            return found
    if any(part == "train" for part, _ in parts):
        raise DataError(
            f"{place}: its files are called train, and what was trained on tells nothing; name a file to measure on it all "
            "the same"
        )
    others = [file for _, file in parts if not (is_document(file) and format_of(file) == "text")]
    if not others:
        raise DataError(f"{place}: no file of text or records below it; give one with data to measure on")
    return others


def _prompted(examples: Sequence[Example], template: str) -> Iterator[Example]:
    template = template.replace("\\n", "\n")
    if template and PROMPT not in template:
        raise ConfigError(
            f"--prompt {template!r:.60}: expected a text with {PROMPT}, which stands for a record's prompt"
        )
    for example in examples:
        if template and isinstance(example, Completion | MultipleChoice):
            yield replace(example, prompt=template.replace(PROMPT, example.prompt))
        else:
            yield example
