"""What of a chat its template writes: a message, or a field of it, that leaves no trace in the text was not heard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedlora.data.examples import ASSISTANT, SAID, ChatMessage, strings_in
from fedlora.errors import FedloraError

Write = Callable[[Sequence[ChatMessage]], str]  # raises FedloraError

_PRIVATE_USE = range(0xF0000, 0x10FFFE)  # characters that nobody uses in a text
_EMPTY: tuple[object, ...] = (None, "", [], {}, ())
# What ends a thought that stands before an answer in its content, as models write it.
_THOUGHT_BEGINS = re.compile(r"<(?:think|thinking|thought|reasoning)>|\[THINK\]", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"\s*(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\])", re.IGNORECASE)
_PIECE = 1 << 16  # characters that are looked at in one piece, in which no other thread runs
_MAX_TRIALS = 8  # messages that are left out for a trial: each costs a rendering of the whole chat


def unused_marks(messages: Sequence[ChatMessage], count: int) -> list[str]:
    """Up to `count` characters for private use that nobody in the chat has used."""
    used: set[str] = set()
    for text in strings_in([message.given() for message in messages]):
        used |= _characters(text)
    marks: list[str] = []
    for mark in map(chr, _PRIVATE_USE):
        if len(marks) == count:
            break
        if mark not in used:
            marks.append(mark)
    return marks


def with_text_after(message: ChatMessage, text: str) -> ChatMessage:
    """The message whose content ends with `text` too: in its last part, where it has parts."""
    if message.content is None or isinstance(message.content, str):
        return replace(message, content=(message.content or "") + text)
    *parts, last = message.content
    return replace(message, content=[*parts, {**last, "text": last["text"] + text}])


def marked(message: ChatMessage, mark: str) -> ChatMessage:
    """The message with a mark at the end of everything that it says."""
    for name in SAID:
        if message.given().get(name):
            message = _marked(message, name, mark)
    return message


def _characters(text: str) -> set[str]:
    """Those of a text, piece by piece."""
    found: set[str] = set()
    for begin in range(0, len(text), _PIECE):
        found.update(text[begin : begin + _PIECE])
    return found


class ChatTrace:
    """What leaves a trace in `text`, which `write` wrote of all the messages."""

    def __init__(self, write: Write, messages: Sequence[ChatMessage], text: str) -> None:
        self._write, self._messages, self._text = write, tuple(messages), text
        self._heard = self._marks_in_the_text()

    def silent_message(self) -> int | None:
        """The index of the first message that says something and changes nothing."""
        for index in self._silent(lambda message: message.says_something, SAID):
            others = [*self._messages[:index], *self._messages[index + 1 :]]
            try:
                is_silent = self._write(others) == self._text
            except FedloraError:  # the template cannot do without it: whether it hears what is said is another question
                is_silent = self._same(self._with_other_words(index))
            if is_silent:
                return index
        return None

    def _with_other_words(self, index: int) -> list[ChatMessage]:
        """The messages, one of which says something else in every way in which it says anything."""
        [mark] = unused_marks(self._messages, 1)
        message = marked(self._messages[index], mark)
        if message.text:
            message = replace(message, content=mark)
        return [*self._messages[:index], message, *self._messages[index + 1 :]]

    def silent_field(self, name: str) -> int | None:
        """The index of the first message whose field of this name says something and changes nothing."""
        silent = self._silent(lambda message: message.given().get(name) not in _EMPTY, (name,))
        if name not in SAID:  # a name, a time, the number of a call: a template writes it everywhere or nowhere
            nowhere = silent and self._same([_without(message, name) for message in self._messages])
            return silent[0] if nowhere else None
        for index in silent:
            trial = list(self._messages)
            trial[index] = _without(trial[index], name)
            if self._same(trial):
                return index
        return None

    def silent_thoughts(self) -> list[int]:
        """The indices of answers whose content begins with a thought that leaves no trace."""
        marks = unused_marks(self._messages, len(self._messages))
        thoughts = {
            index: (mark, message)
            for index, mark in enumerate(marks)
            if (message := _with_mark_in_thought(self._messages[index], mark)) is not None
        }
        if not thoughts:
            return []
        try:
            found = self._write([thoughts[at][1] if at in thoughts else m for at, m in enumerate(self._messages)])
        except FedloraError:  # a template may look into what is said
            return []
        return [index for index, (mark, _) in thoughts.items() if mark not in found]

    def _silent(self, says: Callable[[ChatMessage], bool], names: Sequence[str]) -> list[int]:
        """The messages that say something, of whose fields `names` none is certainly heard."""
        every = enumerate(self._messages)
        silent = [at for at, message in every if says(message) and self._heard[at].isdisjoint(names)]
        return silent[:_MAX_TRIALS]

    def _same(self, messages: Sequence[ChatMessage]) -> bool:
        try:
            return self._write(messages) == self._text
        except FedloraError:  # it could not be left out
            return False

    def _marks_in_the_text(self) -> list[set[str]]:
        """For each message the fields that certainly leave a trace: a mark at their end is in the text."""
        marks = iter(unused_marks(self._messages, len(self._messages) * len(SAID)))
        trial, places = [], []
        for index, message in enumerate(self._messages):
            given = message.given()
            with_marks = message
            for name in SAID:
                if given.get(name) and (mark := next(marks, None)) is not None:
                    with_marks = _marked(with_marks, name, mark)
                    places.append((mark, index, name))
            trial.append(with_marks)
        try:
            found = _characters(self._write(trial))
        except FedloraError:  # a template may look into what is said
            found = set()
        heard: list[set[str]] = [set() for _ in self._messages]
        for mark, index, name in places:
            if mark in found:
                heard[index].add(name)
        return heard


def _with_mark_in_thought(message: ChatMessage, mark: str) -> ChatMessage | None:
    """The answer with a mark at the end of what it thinks; None where its content has no thought."""
    if message.role != ASSISTANT or message.content is None:
        return None
    if isinstance(message.content, str):
        content = _marked_thought(message.content, mark)
        return None if content is None else replace(message, content=content)
    for number, part in enumerate(message.content):
        if (text := _marked_thought(str(part["text"]), mark)) is not None:
            parts = [*message.content[:number], {**part, "text": text}, *message.content[number + 1 :]]
            return replace(message, content=parts)
    return None


def _marked_thought(content: str, mark: str) -> str | None:
    end = _THOUGHT_ENDS.search(content)
    if end is None or not _THOUGHT_BEGINS.sub("", content[: end.start()]).strip():
        return None
    return content[: end.start()] + mark + content[end.start() :]


def _marked(message: ChatMessage, name: str, mark: str) -> ChatMessage:
    if name == "content":
        return with_text_after(message, mark)
    return replace(message, fields={**message.fields, name: _marked_value(message.fields[name], mark)})


def _marked_value(value: Any, mark: str) -> Any:
    """Text with a mark at its end; calls with one at the end of their names."""
    match value:
        case str():
            return value + mark
        case list():
            return [_marked_value(one, mark) for one in value]
        case {"function": Mapping() as function, **rest}:
            return {**rest, "function": _marked_value(function, mark)}
        case {"name": str(name), **rest}:
            return {**rest, "name": name + mark}
    return value


def _without(message: ChatMessage, name: str) -> ChatMessage:
    if name == "content":
        return replace(message, content="")
    return replace(message, fields={key: value for key, value in message.fields.items() if key != name})
