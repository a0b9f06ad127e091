"""Conversations in the words of ShareGPT and of TRL, as messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.data.examples import ASSISTANT
from fedlora.errors import DataError
from fedlora.nearest import hint

from fedlora_client.data.json_values import kind

Message = dict[str, Any]

_SPEAKERS = {  # ShareGPT's, and what has been written in its form
    "system": "system", "human": "user", "user": "user", "gpt": ASSISTANT, "assistant": ASSISTANT, "chatgpt": ASSISTANT,
    "bing": ASSISTANT, "bard": ASSISTANT, "model": ASSISTANT, "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip


def as_messages(value: object, name: str) -> object:
    """The messages of `name`; a ShareGPT turn, with from and value, as one with role and content. Raises DataError."""
    if not isinstance(value, list):
        return value
    return [_turn(turn, f"{name} {number}") if _is_turn(turn) else turn for number, turn in enumerate(value, 1)]


def prompt_messages(prompt: list[Any], completion: list[Any]) -> list[Any]:
    """Both in one conversation, of which the completion alone is learned."""
    before = [_not_learned(message) for message in as_messages(prompt, "prompt")]  # type: ignore[attr-defined]
    return [*before, *as_messages(completion, "completion")]  # type: ignore[misc]


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and "role" not in turn and ("from" in turn or "value" in turn)


def _turn(turn: Mapping[str, Any], where: str) -> Message:
    for needed in ("from", "value"):
        if needed not in turn:
            raise DataError(f"{where}: {needed} is missing; expected an object with from and value")
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker.lower() not in _SPEAKERS:
        what = kind(speaker) if not isinstance(speaker, str) else f"{speaker[:40]!r}"
        near = hint(str(speaker), _SPEAKERS, "write the turn as a message with role and content")
        raise DataError(f"{where}: from is {what}; expected one of {', '.join(_SPEAKERS)}; {near}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": _SPEAKERS[speaker.lower()], "content": turn["value"], **rest}


def _not_learned(message: object) -> object:
    return {**message, "weight": 0} if isinstance(message, Mapping) and message.get("role") == ASSISTANT else message
