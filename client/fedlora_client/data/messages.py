"""The messages of a chat, as a record has them."""

from __future__ import annotations

from fedlora.data.examples import Chat, ChatMessage
from fedlora.errors import DataError

from fedlora_client.data.json_values import kind, text_field


def chat_of(messages: object, **more: object) -> Chat:
    """The chat of a record's messages, and of what the record has beside them. Raises DataError."""
    if not isinstance(messages, list):
        raise DataError(f"messages must be a list of objects with role and content, got {kind(messages)}")
    for name in more:
        raise DataError(f"{name} is not supported in a chat; write it as messages, or take it out")
    result = []
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{where}: expected an object with role and content, got {kind(message)}")
        if message.get("weight", 1) != 1:
            raise DataError(f"{where}: weight is {kind(message['weight'])}; every message of the assistant is learned")
        result.append(ChatMessage(text_field(message, "role", where), text_field(message, "content", where)))
    return Chat(tuple(result))
