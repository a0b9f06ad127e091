"""How to speak with an adapter whose training saved its tokenizer beside it; the manifest of an adapter file keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.data.chat_settings import MAX_TEMPLATE_BYTES, ChatSettings, read_chat_settings
from fedlora.data.chat_template import template_of
from fedlora.errors import AdapterError, PackError
from fedlora.peft.layout import COMPANIONS

_REMEDY = "mend it, or remove it and the base's counts"
_TEXTS, _TOKENS, _ENDS = ("source", "tool_source"), "special_tokens", "eos_token_ids"


def adapter_chat_settings(directory: Path) -> ChatSettings:
    """What a PEFT directory says of chats. Raises AdapterError where a file that is there cannot be used."""
    listed = {name for name in COMPANIONS if (directory / name).exists()}
    settings = read_chat_settings(directory, listed, error=AdapterError, remedy=_REMEDY, generation=True)
    return _checked(settings)


def chat_to_json(chat: ChatSettings) -> dict[str, Any]:
    """What a manifest keeps; empty where nothing is said."""
    told = {name: getattr(chat, name) for name in _TEXTS if getattr(chat, name) is not None}
    tokens = {_TOKENS: dict(chat.special_tokens)} if chat.special_tokens else {}
    return {**told, **tokens, **({_ENDS: list(chat.eos_token_ids)} if chat.eos_token_ids else {})}


def chat_from_json(values: Mapping[str, Any], where: str) -> ChatSettings:
    """The inverse of `chat_to_json`. Raises AdapterError, naming the key."""
    kinds = {**dict.fromkeys(_TEXTS, str), _TOKENS: dict, _ENDS: list}
    for name, value in values.items():
        if name not in kinds or type(value) is not kinds[name]:
            raise AdapterError(f"{where}: chat: {name!r:.80} is not understood; export the adapter again")
    tokens, ends = values.get(_TOKENS, {}), values.get(_ENDS, [])
    if not all(isinstance(text, str) for text in tokens.values()) or not all(type(token) is int for token in ends):
        raise AdapterError(
            f"{where}: chat: expected {_TOKENS} of texts and {_ENDS} of numbers; export the adapter again"
        )
    texts = {name: values.get(name) for name in _TEXTS}
    place = f"{where}: chat" if texts["source"] is not None else ""
    return _checked(ChatSettings(**texts, place=place, special_tokens=tokens, eos_token_ids=tuple(ends)))


def _checked(settings: ChatSettings) -> ChatSettings:
    """The settings, whose template is one: what cannot be used is told when an adapter is loaded, not when it is asked."""
    sizes = [len(source) for source in (settings.source, settings.tool_source) if source is not None]
    if max(sizes, default=0) > MAX_TEMPLATE_BYTES:
        raise AdapterError(f"{settings.place}: a chat template of {max(sizes)} characters; {_REMEDY}")
    try:
        template_of(settings)
    except PackError as error:
        raise AdapterError(str(error).replace("mend it and pack the model again", _REMEDY)) from None
    return settings
