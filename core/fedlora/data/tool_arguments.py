"""The arguments of tool calls: OpenAI's interface writes them as JSON in a string, most chat templates expect the object.

A template that writes `arguments | tojson` would quote the string once more, and the model would read calls that it never
saw; one that goes through the arguments would fail. A template that puts them into a text wants the string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedlora.data.examples import ChatMessage
from fedlora.files.json_text import parse_json

_CALLS = "tool_calls"


def with_objects(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with every string of arguments that is a JSON object as that object; none at all is an empty one."""
    return [_with_arguments(message, _object) for message in messages]


def with_strings(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with every object of arguments as JSON in a string."""
    return [_with_arguments(message, _string) for message in messages]


def without_arguments(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with an empty object for every one of arguments."""
    return [_with_arguments(message, lambda given: {} if isinstance(given, Mapping) else given) for message in messages]


def objects_in(messages: Sequence[ChatMessage]) -> Iterator[Mapping[str, Any]]:
    """The objects of arguments that are not empty."""
    for message in messages:
        for call in _calls(message):
            given = _function(call).get("arguments")
            if isinstance(given, Mapping) and given:
                yield given


def _with_arguments(message: ChatMessage, changed: Callable[[Any], Any]) -> ChatMessage:
    calls = _calls(message)
    if not any("arguments" in _function(call) for call in calls):
        return message
    return replace(message, fields={**message.fields, _CALLS: [_changed(call, changed) for call in calls]})


def _calls(message: ChatMessage) -> Sequence[Any]:
    calls = message.fields.get(_CALLS)
    return calls if isinstance(calls, Sequence) and not isinstance(calls, str) else ()


def _function(call: Any) -> Mapping[str, Any]:
    """What has the name and the arguments of a call: its `function`, or the call itself."""
    if not isinstance(call, Mapping):
        return {}
    function = call.get("function")
    return function if isinstance(function, Mapping) else call


def _changed(call: Any, changed: Callable[[Any], Any]) -> Any:
    function = _function(call)
    if "arguments" not in function:
        return call
    function = {**function, "arguments": changed(function["arguments"])}
    return {**call, "function": function} if isinstance(call.get("function"), Mapping) else function


def _object(given: Any) -> Any:
    if given is None or given == "":
        return {}
    if not isinstance(given, str):
        return given
    try:
        value = parse_json(given)
    except (ValueError, RecursionError):
        return given
    return value if isinstance(value, dict) else given


def _string(given: Any) -> Any:
    return json.dumps(given, ensure_ascii=False) if isinstance(given, Mapping) else given
