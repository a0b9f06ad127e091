"""A base's chat template: how messages become the text that the model was taught to read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fedlora.base.pack import MANIFEST, read_manifest
from fedlora.base.packing import TOOL_TEMPLATE
from fedlora.data.chat_fields import unheard_fields
from fedlora.data.chat_settings import ChatSettings, read_chat_settings
from fedlora.data.chat_spans import RenderedChat, rendered_chat
from fedlora.data.chat_trace import ChatTrace, unused_marks, with_text_after
from fedlora.data.examples import DEVELOPER, REASONING, SYSTEM, Chat, ChatMessage
from fedlora.data.template_process import (
    TemplateCostsError,
    TemplateFailedError,
    TemplateRefusedError,
    check_template,
    rendered,
)
from fedlora.data.template_sandbox import FIXED_DAY
from fedlora.data.tool_arguments import objects_in, with_objects, with_strings, without_arguments
from fedlora.errors import DataError, FedloraError, PackError

_REMEDY = "give prompt and completion instead, or pack the model with another chat template"
RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)


class _CostsTooMuchError(PackError):
    """A template that is not asked a second time."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a template is given beside the messages."""

    add_generation_prompt: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def load_chat_template(directory: Path, *, now: Callable[[], date] = lambda: FIXED_DAY) -> ChatTemplate | None:
    """The chat template of a base pack or a checkpoint; None where it has none. Raises PackError.

    `now` is the clock of templates that ask for the date. Without one it is the same on every day.
    """
    return template_of(chat_settings_of(directory), now=now)


def chat_settings_of(directory: Path) -> ChatSettings:
    """What a base pack or a checkpoint says of chats. Raises PackError."""
    if (directory / MANIFEST).is_file():  # files that are not under the pack's fingerprint are not the base's
        listed = set(read_manifest(directory)["files"])
    else:
        listed = {file.name for file in directory.iterdir()}
        listed |= {TOOL_TEMPLATE} if (directory / TOOL_TEMPLATE).is_file() else set()
    return read_chat_settings(
        directory, listed, error=PackError, remedy="copy the pack again, or mend it and pack anew"
    )


def template_of(settings: ChatSettings, *, now: Callable[[], date] = lambda: FIXED_DAY) -> ChatTemplate | None:
    """The template, compiled; None where there is none. Raises PackError."""
    if settings.source is None:
        return None
    tokens, tools = settings.special_tokens, settings.tool_source
    return ChatTemplate(settings.source, settings.place, tokens, tool_source=tools, now=now)


class ChatTemplate:
    """A Jinja template, which runs in a sandbox in a process of its own."""

    def __init__(
        self,
        source: str,
        place: str,
        tokens: Mapping[str, str],
        *,
        tool_source: str | None = None,
        now: Callable[[], date] = lambda: FIXED_DAY,
    ) -> None:
        """`tokens` are the special tokens by the names that templates use (`bos_token`). Raises PackError.

        `tool_source` is the template of chats with tools, where that is another one.
        """
        self.place = place
        self._tokens = dict(tokens)
        self._now = now
        self._source, self._tool_source = source, tool_source
        for each in (source, tool_source):
            if each is not None:
                self._check(each)

    def mentions(self, name: str, *, tools: bool = False) -> bool:
        """Whether the template's source has this word anywhere."""
        source = self._tool_source if tools and self._tool_source is not None else self._source
        return re.search(rf"\b{re.escape(name)}\b", source) is not None

    def words(self, *, tools: bool = False) -> frozenset[str]:
        """The words of the template's source: names of its variables are among them."""
        source = self._tool_source if tools and self._tool_source is not None else self._source
        return frozenset(re.findall(r"[A-Za-z_]\w{3,}", source))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template goes through the parts of a content, rather than writing a list where it expects text."""
        [mark] = unused_marks((), 1)
        probe = ChatMessage("user", [{"type": "text", "text": mark}])
        try:
            written = self._rendered([probe.given()], "a content of parts", _Asked())
        except FedloraError:
            return False
        return mark in written and not re.search(r"""\{\s*["']type["']""", written)

    def text(
        self,
        messages: Sequence[ChatMessage],
        where: str,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The messages as text, with the beginning of an answer after them where that is asked for.

        With `continue_final_message` the text ends where the last message's content does. `variables` are handed to the
        template as they are. Raises DataError where the template refuses the messages, PackError where it fails.
        """
        asked = _Asked(add_generation_prompt, tools, documents, variables or {})
        if taken := sorted(RESERVED & asked.variables.keys()):
            raise DataError(
                f"{where}: {taken[0]} is no variable of a template's own; give it as a field beside messages"
            )
        messages = self._with_arguments(messages, where, asked)
        if continue_final_message:
            return self._continued(messages, where, asked)
        return self._written(messages, where, asked)

    def _continued(self, messages: Sequence[ChatMessage], where: str, asked: _Asked) -> str:
        if asked.add_generation_prompt:
            raise DataError(
                f"{where}: either the last message is continued or another one is begun; set continue_final_message or "
                "add_generation_prompt to false"
            )
        if not messages or not messages[-1].text:
            raise DataError(f"{where}: the last message has no content to continue; expected text in it")
        [mark] = unused_marks(messages, 1)
        # The space tells whether the template keeps what stands at the end of a content.
        marked = [*messages[:-1], with_text_after(messages[-1], f"{mark} ")]
        before, found, after = self._written(marked, where, asked).rpartition(mark)
        if not found:
            raise DataError(
                f"{where}: {self.place} does not write the end of the last message's content, so it cannot be "
                "continued; set continue_final_message to false"
            )
        return before if after.startswith(" ") else before.rstrip()

    def rendered(self, chat: Chat, where: str) -> RenderedChat:
        """The chat's text and the parts of it that are learned, which the assistant says.

        Raises DataError where the template refuses the chat or leaves out what it says, or where no such part can be told
        from the rest; PackError where it fails.
        """
        if taken := sorted(name for name in chat.variables if name in RESERVED or not self._mentions(name, chat)):
            raise DataError(f"{where}: {taken[0]:.70} is no variable of {self.place}; remove it")
        asked = _Asked(False, chat.tools, chat.documents, chat.variables)
        chat = replace(chat, messages=tuple(self._with_arguments(chat.messages, where, asked)))

        def write(
            messages: Sequence[ChatMessage],
            *,
            answer: bool = False,
            marks: tuple[str, str] = ("", ""),
            leave_out: str = "",
        ) -> str:
            tools, documents = (None if leave_out == name else getattr(chat, name) for name in ("tools", "documents"))
            return self._written(messages, where, _Asked(answer, tools, documents, chat.variables), marks)

        found = rendered_chat(write, chat, where, self.place)
        for name, what in (("tools", chat.tools), ("documents", chat.documents)):
            if what and write(chat.messages, leave_out=name) == found.text:
                raise DataError(
                    f"{where}: {name}: {self.place} writes none; remove them, or pack a model whose template does"
                )
        trace = ChatTrace(write, chat.messages, found.text)
        return replace(
            found, unheard=unheard_fields(trace, chat, partial(self._mentions, chat=chat), where, self.place)
        )

    def _mentions(self, name: str, chat: Chat) -> bool:
        return self.mentions(name, tools=chat.tools is not None)

    def _with_arguments(self, messages: Sequence[ChatMessage], where: str, asked: _Asked) -> Sequence[ChatMessage]:
        """The messages with the arguments of calls as the template takes them: objects, or, where it fails on one, leaves
        it out or puts it into a text, strings."""
        if not any(message.fields.get("tool_calls") for message in messages):
            return messages

        def written(some: Sequence[ChatMessage]) -> str | None:
            try:
                return self._written(some, where, asked)
            except _CostsTooMuchError:
                raise
            except FedloraError:
                return None

        objects, strings = with_objects(messages), with_strings(messages)
        text = written(objects)
        if text is None:
            return strings if written(strings) is not None else messages
        given = list(objects_in(objects))
        # What is there of an object that was put into a text is Python's way to write it, which no model has learned.
        is_heard = not any(str(one) in text for one in given) and text != written(without_arguments(objects))
        return objects if is_heard or not given else strings

    def _written(
        self, messages: Sequence[ChatMessage], where: str, asked: _Asked, marks: tuple[str, str] = ("", "")
    ) -> str:
        given = [self._given(message, tools=asked.tools is not None) for message in messages]
        try:
            return self._rendered(given, where, asked, marks)
        except _CostsTooMuchError:
            raise
        except PackError:
            if all("content" in message for message in given):
                raise
        # Many templates take a content for granted: that there is none is null to some, and "" to the others.
        try:
            return self._rendered([{"content": None, **message} for message in given], where, asked, marks)
        except PackError:
            return self._rendered([{"content": "", **message} for message in given], where, asked, marks)

    def _given(self, message: ChatMessage, *, tools: bool) -> dict[str, Any]:
        given = message.given()
        if message.role == DEVELOPER and not self.mentions(DEVELOPER, tools=tools):
            given["role"] = SYSTEM  # its newer name, which templates that are older take for a stranger
        if not isinstance(given.get("content", ""), str) and not self.takes_parts:
            given["content"] = message.text
        # transformers hands what a model thought under each of its names too: whichever the template reads.
        if (thought := next((given[name] for name in REASONING if name in given), None)) is not None:
            given = {"thinking": thought, **given, "reasoning_content": thought}
        return given

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        where: str,
        asked: _Asked,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        values: dict[str, Any] = {
            **self._tokens,
            **asked.variables,
            "messages": messages,
            "add_generation_prompt": asked.add_generation_prompt,
            "tools": asked.tools,
            "documents": asked.documents,
        }
        source = self._source if asked.tools is None or self._tool_source is None else self._tool_source
        try:
            return rendered(source, self.place, values, marks, self._now())
        except TemplateRefusedError as error:
            raise DataError(f"{where}: {self.place} refuses these messages: {error}; change or remove them") from None
        except TemplateFailedError as error:
            line = f"line {error.line}: " if error.line else ""
            kind = _CostsTooMuchError if isinstance(error, TemplateCostsError) else PackError
            raise kind(f"{self.place}: {line}cannot write the messages of {where}: {error}; {_REMEDY}") from None

    def _check(self, source: str) -> None:
        try:
            check_template(source, self.place)
        except TemplateFailedError as error:
            line = f"line {error.line}: " if error.line else ""
            raise PackError(
                f"{self.place}: {line}not a Jinja template: {error}; mend it and pack the model again"
            ) from None
