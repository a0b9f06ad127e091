"""Conversations in the words of ShareGPT and of TRL, as messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.data.examples import ASSISTANT
from fedlora.errors import DataError
from fedlora.files.json_text import parse_json
from fedlora.nearest import hint

from fedlora_client.records.json_values import kind

Message = dict[str, Any]

_SPEAKERS = {  # ShareGPT's, and what has been written in its form
    "system": "system", "human": "user", "user": "user", "gpt": ASSISTANT, "assistant": ASSISTANT, "chatgpt": ASSISTANT,
    "bing": ASSISTANT, "bard": ASSISTANT, "model": ASSISTANT, "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip
_CALLS = "function_call"  # a turn of the assistant, whose value is what it calls, as JSON


def as_messages(value: object, name: str) -> object:
    """The messages of `name`; a ShareGPT turn, with from and value, as one with role and content. Raises DataError."""
    if not isinstance(value, list):
        return value
    return [_turn(turn, f"{name} {number}") if _is_turn(turn) else turn for number, turn in enumerate(value, 1)]


def as_tools(tools: object, turns: object) -> object:
    """The `tools` beside ShareGPT's turns as templates know them: each function within an object that says what it is."""
    if not isinstance(turns, list) or not any(map(_is_turn, turns)):
        return tools
    try:
        listed = parse_json(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError):
        return tools  # whoever reads it says what is wrong
    if not isinstance(listed, list):
        return tools
    return [{"type": "function", "function": one} if _is_bare_function(one) else one for one in listed]


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
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if isinstance(speaker, str) and speaker.lower() == _CALLS:
        return {"role": ASSISTANT, "content": None, "tool_calls": _calls(turn["value"], where), **rest}
    if not isinstance(speaker, str) or speaker.lower() not in _SPEAKERS:
        what = kind(speaker) if not isinstance(speaker, str) else f"{speaker[:40]!r}"
        near = hint(str(speaker), (*_SPEAKERS, _CALLS), "write the turn as a message with role and content")
        raise DataError(f"{where}: from is {what}; expected one of {', '.join((*_SPEAKERS, _CALLS))}; {near}")
    return {"role": _SPEAKERS[speaker.lower()], "content": turn["value"], **rest}


def _calls(value: object, where: str) -> list[dict[str, Any]]:
    """The calls of a turn, as a message has them."""
    try:
        called = parse_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        called = None
    calls: list[Any] = called if isinstance(called, list) else [called]
    if not calls or not all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in calls):
        raise DataError(
            f"{where}: from is {_CALLS!r}, so value must be JSON with the name and the arguments of what is called, or a "
            f"list of such, got {kind(value)}; otherwise write the turn as a message with role, content and tool_calls"
        )
    return [{"type": "function", "function": {"arguments": {}, **one}} for one in calls]


def _is_bare_function(tool: object) -> bool:
    return isinstance(tool, Mapping) and isinstance(tool.get("name"), str) and not tool.keys() & {"type", "function"}


def _not_learned(message: object) -> object:
    return {**message, "weight": 0} if isinstance(message, Mapping) and message.get("role") == ASSISTANT else message
