"""Which part of a chat's text its assistant says, and so what is learned of it.

A template may mark it with {% generation %}. Without marks an answer is what its message adds to the messages before
it and the beginning of an answer. Some templates write earlier messages anew as the chat goes on: an end token once,
after the last answer; thoughts in the last answer alone. They are rendered again with characters in the content that nobody
uses, which tell where it lies in the final text; how an answer begins and ends is compared with the text that ends there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

from fedlora.data.chat_trace import marked, unused_marks
from fedlora.data.examples import ASSISTANT, Chat, ChatMessage
from fedlora.errors import DataError, FedloraError, PackError

# What is never cut in two: a special token as templates spell it, a word, a character.
_ATOM = re.compile(r"<[^<>\s]{1,64}>|\[/?\w{1,64}\]|\w+|.", re.DOTALL)

Span = tuple[int, int]  # [begin, end) in characters


class Writer(Protocol):
    """What writes messages as one chat. Raises FedloraError."""

    def __call__(
        self, messages: Sequence[ChatMessage], *, answer: bool = False, marks: tuple[str, str] = ("", "")
    ) -> str:
        """`answer`: the beginning of one follows. `marks` stand around each {% generation %} block."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat's text, and which of it the assistant says that is to be learned: in order, apart."""

    text: str
    spans: tuple[Span, ...]
    not_found: int = 0  # answers that are to be learned and could not be told from the rest
    unheard: tuple[str, ...] = ()  # fields of messages that changed nothing in the text


def rendered_chat(write: Writer, chat: Chat, where: str, place: str) -> RenderedChat:
    """The chat's text and the assistant's parts of it. Raises DataError where none of them can be told from the rest."""
    before, after, inner = unused_marks(chat.messages, 3)
    text = write(chat.messages, marks=(before, after))
    if before not in text:
        return _by_comparison(write, chat, text, where, place)
    text, spans = _between_marks(text, before, after, place)
    if all(message.is_learned for message in chat.messages):
        return RenderedChat(text, spans)
    # The block of a message that is not learned has what the message says in it.
    messages = [message if message.is_learned else marked(message, inner) for message in chat.messages]
    told, blocks = _between_marks(write(messages, marks=(before, after)), before, after, place)
    if told.replace(inner, "") != text or len(blocks) != len(spans):
        raise DataError(
            f"{where}: {place} writes a message that is not to be learned (weight 0, or train false) so that it cannot be "
            "told from the others; remove its record"
        )
    kept = [span for span, (begin, end) in zip(spans, blocks, strict=True) if inner not in told[begin:end]]
    return RenderedChat(text, tuple(kept))


def _by_comparison(write: Writer, chat: Chat, text: str, where: str, place: str) -> RenderedChat:
    search = _Search(write, chat.messages, text, where, place)
    spans: list[Span] = []
    not_found = 0
    for index, message in enumerate(chat.messages):
        if message.role != ASSISTANT or not message.is_learned:
            continue
        span = search.span(index)
        if span is None or (spans and span[0] < spans[-1][1]):
            not_found += 1
        else:
            spans.append(span)
    if not spans:
        raise DataError(
            f"{where}: {place} writes the messages before an answer differently once it is there, and has no "
            "{% generation %} marks: what the assistant says cannot be told from the rest; give prompt and completion "
            "instead, or pack the model with another chat template"
        )
    return RenderedChat(text, tuple(spans), not_found)


class _Search:
    """Looks for answers in the text of a whole chat."""

    def __init__(self, write: Writer, messages: Sequence[ChatMessage], text: str, where: str, place: str) -> None:
        self._write, self._messages, self._text = write, messages, text
        self._where, self._place = where, place
        self._marks = unused_marks(messages, 2)
        self._content = cache(self._content_of)

    def span(self, index: int) -> Span | None:
        """Where the answer `index` stands; None where that cannot be told."""
        begin, end = self._begin(index), self._end(index)
        return (begin, end) if begin is not None and end is not None and begin < end else None

    def _begin(self, index: int) -> int | None:
        before = self._before(index)
        if before is not None and self._text.startswith(before):
            return len(before)
        begin, end = self._content(index)
        said_before = self._content(index - 1)[1] if index else None
        header = self._after_content(index - 1, index, answer=True) if index else None
        if said_before is not None and header is not None:
            if self._text.startswith(header, said_before):
                return said_before + len(header)
            if self._messages[index].fields or begin is None:  # what else it says may stand before its content
                return said_before + _common(header, self._text[said_before : begin if begin is not None else end])
        return begin

    def _end(self, index: int) -> int | None:
        if index + 1 == len(self._messages):
            return len(self._text)
        try:
            if self._text.startswith(after := self._write(self._messages[: index + 1])):
                return len(after)
        except FedloraError:
            pass
        end = self._content(index)[1]
        footer = self._after_content(index, index + 1, answer=False)
        if end is None or footer is None:
            return None
        next_begin, next_end = self._content(index + 1)
        bound = next_begin if next_begin is not None else next_end
        return end + _common(footer, self._text[end:bound])

    def _before(self, index: int) -> str | None:
        try:
            return self._write(self._messages[:index], answer=True)
        except FedloraError:
            if index:
                return None
            raise DataError(
                f"{self._where}: the assistant speaks first, and {self._place} cannot begin an answer to nothing; begin "
                "with a message of the user"
            ) from None

    def _content_of(self, index: int) -> tuple[int | None, int | None]:
        """Where what the message says begins, with the spaces before it where they are kept, and where it ends."""
        begin, end = self._marked(index)
        content = self._messages[index].content
        if begin is not None and isinstance(content, str) and content[:1].isspace():
            spaces = len(content) - len(content.lstrip())
            if content[:spaces] == self._text[begin - spaces : begin]:
                begin -= spaces
        return begin, end

    def _marked(self, index: int) -> tuple[int | None, int | None]:
        """Where the first and the last word of the message begin and end in the text, as far as they are found."""
        first, last = self._marks
        try:
            trial = self._write(self._with(index, first, last, len(self._messages)))
        except FedloraError:
            return None, None
        if trial.count(first) > 1 or trial.count(last) > 1 or re.sub(f"[{first}{last}]", "", trial) != self._text:
            return None, None
        begin, end = trial.find(first), trial.find(last)
        if 0 <= begin < end:
            end -= 1
        return (begin if begin >= 0 else None), (end if end >= 0 else None)

    def _after_content(self, index: int, count: int, *, answer: bool) -> str | None:
        """What follows the content of message `index` where only the first `count` messages are there."""
        last = self._marks[1]
        try:
            _, found, after = self._write(self._with(index, "", last, count), answer=answer).rpartition(last)
        except FedloraError:
            return None
        return after if found else None

    def _with(self, index: int, first: str, last: str, count: int) -> list[ChatMessage]:
        messages = list(self._messages[:count])
        messages[index] = _enclosed(messages[index], first, last)
        return messages


def _enclosed(message: ChatMessage, first: str, last: str) -> ChatMessage:
    """The message with marks around what it says, inside the spaces around it: a template may trim those.

    What says nothing in words has `last` at the end of its last call.
    """
    if not message.text.strip():
        calls = message.fields.get("tool_calls")
        if isinstance(calls, Sequence) and calls and isinstance(calls[-1], Mapping):
            calls = [*calls[:-1], _enclosed_call(calls[-1], last)]
            return replace(message, fields={**message.fields, "tool_calls": calls})
        return replace(message, content=first + last + message.text)
    if isinstance(message.content, str):
        return replace(message, content=_around(message.content, first, last))
    parts = [dict(part) for part in message.content or ()]
    spoken = [part for part in parts if part["text"].strip()]
    spoken[0]["text"] = _around(spoken[0]["text"], first, "")
    spoken[-1]["text"] = _around(spoken[-1]["text"], "", last)
    return replace(message, content=parts)


def _around(text: str, first: str, last: str) -> str:
    core = text.strip()
    begin = text.index(core)
    return text[:begin] + first + core + last + text[begin + len(core) :]


def _enclosed_call(call: Mapping[str, Any], last: str) -> dict[str, Any]:
    match call:
        case {"function": Mapping() as function}:
            return {**call, "function": _enclosed_call(function, last)}
        case {"arguments": str(arguments)} if arguments:
            return {**call, "arguments": arguments + last}
        case {"arguments": Mapping() as arguments} if any(isinstance(value, str) for value in arguments.values()):
            name = [key for key, value in arguments.items() if isinstance(value, str)][-1]
            return {**call, "arguments": {**arguments, name: arguments[name] + last}}
        case {"name": str(name)}:
            return {**call, "name": name + last}
    return dict(call)


def _common(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginnings, in whole atoms."""
    size = 0
    for one, other in zip(_ATOM.finditer(first), _ATOM.finditer(second), strict=False):
        if one.group() != other.group():
            break
        size = one.end()
    return size


def _between_marks(text: str, before: str, after: str, place: str) -> tuple[str, tuple[Span, ...]]:
    """The text without its marks, and the spans that stood between them."""
    pieces = re.split(f"([{before}{after}])", text)
    if "".join(pieces[1::2]) != (before + after) * (len(pieces) // 4):
        raise PackError(
            f"{place}: {{% generation %}} blocks must stand one after another; mend the template and pack again"
        )
    ends, end = [], 0
    for piece in pieces[::2]:
        end += len(piece)
        ends.append(end)
    return "".join(pieces[::2]), tuple(zip(ends[::2], ends[1::2], strict=False))
