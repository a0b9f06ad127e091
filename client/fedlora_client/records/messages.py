"""The messages of a record, and what stands beside them: each field is checked, and none is left out.

    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day.", "weight": 1}],
     "tools": [...], "documents": [...], "chat_template_kwargs": {...}}

`weight` (0 or 1) and `train` (true or false) say whether an answer is learned. Every other field is the template's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.data.chat_fields import TRAIN, WEIGHT
from fedlora.data.examples import ASSISTANT, SAID, SYSTEM, Chat, ChatMessage, Part, strings_in
from fedlora.errors import DataError
from fedlora.files.json_text import parse_json

from fedlora_client.records.json_values import kind, text_field

_LISTS = ("tool_calls",)


def chat_of(messages: object, **more: object) -> Chat | None:
    """The chat of a record's messages, and of what the record has beside them: system, tools, documents,
    chat_template_kwargs. None where no answer is to be learned, by its own word. Raises DataError."""
    if not isinstance(messages, list):
        raise DataError(f"messages must be a list of objects with role and content, got {kind(messages)}")
    said = [_message(message, f"message {number}") for number, message in enumerate(messages, 1)]
    if more.get("system") is not None:
        if said and said[0].role == SYSTEM:
            raise DataError("system: the messages begin with one of the role 'system' already; remove one of them")
        said.insert(0, ChatMessage(SYSTEM, text_field(more, "system")))
    variables = more.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise DataError(f"chat_template_kwargs must be an object, got {kind(variables)}")
    _check_text(variables, "chat_template_kwargs")
    answers = [message for message in said if message.role == ASSISTANT]
    if answers and not any(message.is_learned for message in answers):
        return None
    tools, documents = (_objects(more.get(name), name) for name in ("tools", "documents"))
    return Chat(tuple(said), tools=tools, documents=documents, variables=variables)


def _message(message: object, where: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise DataError(f"{where}: expected an object with role and content, got {kind(message)}")
    role = message.get("role")
    if not isinstance(role, str):
        problem = f"must be a string, got {kind(role)}" if "role" in message else "is missing"
        raise DataError(f"{where}: role {problem}; expected an object with role and content")
    fields = {name: value for name, value in message.items() if name not in ("role", "content", WEIGHT, TRAIN)}
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in _LISTS:
        value = fields.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise DataError(f"{where}: {name} must be a list of objects, got {kind(value)}")
    _check_text([role, fields], where)
    said = role == ASSISTANT and any(fields.get(name) for name in SAID)
    content = None if said and message.get("content") is None else _content(message, where)
    return ChatMessage(role, content, fields, is_learned=_is_learned(message, role, where))


def _content(message: Mapping[str, Any], where: str) -> str | list[Part]:
    if "content" not in message:
        raise DataError(f"{where}: content is missing; expected an object with role and content")
    content = message["content"]
    _check_text(content, f"{where}: content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where}: content must be a string or a list of parts, got {kind(content)}")
    for number, part in enumerate(content, 1):
        match part:
            case {"type": "text", "text": str()}:
                continue
            case {"type": str(name)} if name != "text":
                raise DataError(f"{where}: content: part {number} is of type {name[:40]!r}; only text is learned here")
        raise DataError(
            f'{where}: content: part {number}: expected {{"type": "text", "text": "..."}}, got {kind(part)}'
        )
    return content


def _is_learned(message: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether a message of the assistant is to be learned; of another role none is, whatever it says."""
    weight, train = message.get(WEIGHT), message.get(TRAIN)
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(f"{where}: {WEIGHT} must be 0 (not learned) or 1, got {kind(weight)}")
    if train is not None and not isinstance(train, bool):
        raise DataError(f"{where}: {TRAIN} must be true or false, got {kind(train)}")
    told = {wish for wish in (None if weight is None else weight == 1, train) if wish is not None}
    if len(told) > 1:
        raise DataError(f"{where}: {WEIGHT} and {TRAIN} disagree; remove one of them")
    if role != ASSISTANT and True in told:
        name = TRAIN if train else WEIGHT
        raise DataError(
            f"{where}: {name} asks to learn a message of the role {role!r:.70}, and only those of the role {ASSISTANT!r} "
            "are learned; remove it"
        )
    return told != {False}


def _objects(value: object, name: str) -> tuple[Mapping[str, Any], ...] | None:
    """A list of objects; some data sets keep it as JSON in a string, so that all rows have one type."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name} is a string that is not JSON: {error}; expected a list of objects") from None
    if value is None or value == "":
        return None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{name} must be a list of objects, got {kind(value)}")
    _check_text(value, name)
    return tuple(value)


def _check_text(value: object, where: str) -> None:
    """Raises DataError where a string in a value is no text."""
    for text in strings_in(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise DataError(f"{where} is not text: {half} is half of a character; write the whole one") from None
