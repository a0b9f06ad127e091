"""A base's chat template: how messages become the text that the model was taught to read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from fedlora.base.pack import MANIFEST, read_manifest
from fedlora.data.examples import ASSISTANT, Chat, ChatMessage
from fedlora.data.template_sandbox import BoundedEnvironment, RefusedError
from fedlora.errors import DataError, FedloraError, PackError
from fedlora.files.documents import read_object

_TEMPLATE, _SETTINGS, _SPECIAL = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
_REMEDY = "give prompt and completion instead, or pack the model with another chat template"


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat's text, and which of it the assistant says: [begin, end) in characters, in order, apart."""

    text: str
    spans: tuple[tuple[int, int], ...]


def load_chat_template(directory: Path) -> ChatTemplate | None:
    """The chat template of a base pack or a checkpoint; None where it has none. Raises PackError."""
    if (directory / MANIFEST).is_file():  # files that are not under the pack's fingerprint are not the base's
        listed = set(read_manifest(directory)["files"])
    else:
        listed = {file.name for file in directory.iterdir()}
    objects = {
        name: read_object(directory / name, PackError, "a tokenizer's settings") if name in listed else {}
        for name in (_SETTINGS, _SPECIAL)
    }
    tokens = {key: text for name in (_SPECIAL, _SETTINGS) for key, text in _special_tokens(objects[name]).items()}
    if _TEMPLATE in listed:
        path = directory / _TEMPLATE
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), str(path), tokens)
        except OSError as error:
            raise PackError(f"{path}: cannot be read: {error.strerror}; copy the pack again") from None
        except UnicodeDecodeError as error:
            raise PackError(f"{path}: not UTF-8 text: byte {error.start} is wrong; pack the model again") from None
    place = f"{directory / _SETTINGS}: chat_template"
    source = _default(objects[_SETTINGS].get("chat_template"), place)
    return None if source is None else ChatTemplate(source, place, tokens)


class ChatTemplate:
    """A Jinja template in a sandbox. One thread at a time."""

    def __init__(self, source: str, place: str, tokens: Mapping[str, str]) -> None:
        """`tokens` are the special tokens by the names that templates use (`bos_token`). Raises PackError."""
        self._place = place
        self._tokens = dict(tokens)
        self._environment = BoundedEnvironment()
        try:
            self._template = self._environment.compiled(source, place)
        except TemplateSyntaxError as error:
            raise PackError(
                f"{place}: line {error.lineno}: not a Jinja template: {error.message}; mend it and pack the model again"
            ) from None
        except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise PackError(f"{place}: not a Jinja template: {error}; mend it and pack the model again") from None

    def text(self, messages: Sequence[ChatMessage], where: str, *, add_generation_prompt: bool = False) -> str:
        """The messages as text, with the beginning of an answer after them where that is asked for.

        Raises DataError where the template refuses the messages, PackError where it fails.
        """
        return self._rendered(messages, where, add_generation_prompt, ("", ""))

    def rendered(self, chat: Chat, where: str) -> RenderedChat:
        """The chat's text and the assistant's parts of it.

        They are what the template marks with {% generation %}. Where it marks nothing, the assistant's part of message i
        is what it adds to messages before i and the beginning of an answer. Raises DataError where the template writes
        earlier messages anew as the chat goes on, so that there is no such part.
        """
        marks = _unused_marks(chat)
        marked = self._rendered(chat.messages, where, False, marks)
        if marks[0] in marked:
            return _unmarked(marked, marks, self._place)
        return RenderedChat(marked, tuple(self._spans(marked, chat.messages, where)))

    def _spans(self, whole: str, messages: Sequence[ChatMessage], where: str) -> list[tuple[int, int]]:
        spans = []
        for number, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            before = self._before(messages[:number], where)
            after = whole if number + 1 == len(messages) else self.text(messages[: number + 1], where)
            if not (after.startswith(before) and whole.startswith(after)):
                raise DataError(
                    f"{where}: {self._place} writes the messages before the assistant's message {number + 1} differently "
                    f"once it is there, and has no {{% generation %}} marks: what the assistant says cannot be told from "
                    f"the rest; {_REMEDY}"
                )
            spans.append((len(before), len(after)))
        return spans

    def _before(self, messages: Sequence[ChatMessage], where: str) -> str:
        try:
            return self.text(messages, where, add_generation_prompt=True)
        except FedloraError:
            if messages:
                raise
            raise DataError(
                f"{where}: the assistant speaks first, and {self._place} cannot begin an answer to nothing; begin with "
                "a message of the user"
            ) from None

    def _rendered(
        self, messages: Sequence[ChatMessage], where: str, add_generation_prompt: bool, marks: tuple[str, str]
    ) -> str:
        values: dict[str, Any] = {
            **self._tokens,
            "messages": [asdict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return self._environment.rendered(self._template, values, marks)
        except RefusedError as error:
            raise DataError(f"{where}: {self._place} refuses these messages: {error}; change or remove them") from None
        except Exception as error:  # a template can fail in any way that a program can
            line = _line_of(error.__traceback__, self._place)
            reason = str(error) or type(error).__name__
            raise PackError(f"{self._place}: {line}cannot write the messages of {where}: {reason}; {_REMEDY}") from None


def _default(value: object, place: str) -> str | None:
    """The template itself, or the one named `default` of several."""
    match value:
        case None | str():
            return value
        case list() if all(isinstance(one, dict) for one in value):
            named = {one.get("name"): one.get("template") for one in value}
            if isinstance(template := named.get("default"), str):
                return template
            names = ", ".join(str(name) for name in named) or "nothing"
            raise PackError(f"{place}: expected a template named default, got {names}; name one of them default")
    raise PackError(f"{place}: expected a template or a list of named ones, got {type(value).__name__}")


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """{name: text} of the special tokens, each given as its text or as an object with `content`."""
    given = {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: text for key, text in given.items() if key.endswith("_token") and isinstance(text, str)}


def _unused_marks(chat: Chat) -> tuple[str, str]:
    """Two characters for private use that nobody in the chat has used."""
    used = {character for message in chat.messages for character in message.role + message.content}
    before, after = islice((mark for mark in map(chr, range(0xF0000, 0x10FFFE)) if mark not in used), 2)
    return before, after


def _unmarked(marked: str, marks: tuple[str, str], place: str) -> RenderedChat:
    """The text without its marks, and the spans that stood between them."""
    pieces = re.split("([{}{}])".format(*marks), marked)
    if "".join(pieces[1::2]) != "".join(marks) * (len(pieces) // 4):
        raise PackError(
            f"{place}: {{% generation %}} blocks must stand one after another; mend the template and pack again"
        )
    ends, end = [], 0
    for piece in pieces[::2]:
        end += len(piece)
        ends.append(end)
    return RenderedChat("".join(pieces[::2]), tuple(zip(ends[::2], ends[1::2], strict=False)))


def _line_of(traceback: TracebackType | None, filename: str) -> str:
    """`line N: ` of the template's innermost line in a traceback, as far as one is there."""
    lines = [line for frame, line in walk_tb(traceback) if frame.f_code.co_filename == filename]
    return f"line {lines[-1]}: " if lines else ""
