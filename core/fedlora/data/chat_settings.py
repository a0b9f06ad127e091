"""What a tokenizer's files say of chats: the template, the special tokens, and the tokens that end an answer.

A base pack has them, and so has an adapter whose training saved its tokenizer beside A and B: what it learned to read and
to end with need not be the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.base.packing import TOOL_TEMPLATE, TOOL_TEMPLATE_OF_PACKS
from fedlora.errors import FedloraError
from fedlora.files.bounded import read_bounded
from fedlora.files.documents import read_object

TEMPLATE, SETTINGS, SPECIAL = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
GENERATION = "generation_config.json"
MAX_TEMPLATE_BYTES, MAX_SETTINGS_BYTES = 1 << 20, 16 << 20
_MAX_TOKENS, _MAX_TOKEN = 64, 512  # special tokens, and characters of one
_MAX_ENDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """What they say, where they say it. All empty: nothing is said."""

    source: str | None = None  # of the template
    tool_source: str | None = None  # of the one for chats with tools, where that is another
    place: str = ""  # where the template stands
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # by the names that templates use: `bos_token`
    eos_token_ids: tuple[int, ...] = ()  # of generation_config.json

    def end_tokens(self, id_of: Callable[[str], int | None], vocab_size: int) -> tuple[int, ...]:
        """The tokens that end an answer, as ids; those that the base does not have are none."""
        named = self.special_tokens.get("eos_token")
        ids = [*self.eos_token_ids, *([] if named is None else [id_of(named)])]
        return tuple(dict.fromkeys(token for token in ids if token is not None and 0 <= token < vocab_size))


def read_chat_settings(
    directory: Path,
    listed: Collection[str],
    *,
    error: type[FedloraError],
    remedy: str,
    generation: bool = False,
    template: str = TEMPLATE,
) -> ChatSettings:
    """What the files of `directory` that are `listed` say; with `generation` also of the end of an answer.
    `template` is the file of the template, where it has another name.

    Raises `error`, which ends with the `remedy`.
    """
    settings, special, generation_config = (
        _object(directory / name, error, remedy) if name in listed else {}
        for name in (SETTINGS, SPECIAL, GENERATION if generation else "")
    )
    place = f"{directory / SETTINGS}: chat_template"
    if TEMPLATE in listed:
        source: str | None = _text(directory / template, error, remedy)
        place = str(directory / template)
        tool_file = next((name for name in (TOOL_TEMPLATE, TOOL_TEMPLATE_OF_PACKS) if name in listed), None)
        tool_source = None if tool_file is None else _text(directory / tool_file, error, remedy)
    else:
        source, tool_source = _sources(settings.get("chat_template"), place, error)
    tokens = {**_special_tokens(special), **_special_tokens(settings)}
    ends = generation_config.get("eos_token_id")
    return ChatSettings(
        source=source,
        tool_source=tool_source,
        place=place if source is not None else "",
        special_tokens=tokens,
        eos_token_ids=tuple(t for t in (ends if isinstance(ends, list) else [ends]) if type(t) is int)[:_MAX_ENDS],
    )


def _object(path: Path, error: type[FedloraError], remedy: str) -> dict[str, Any]:
    return read_object(path, error, f"a tokenizer's settings; {remedy}", max_bytes=MAX_SETTINGS_BYTES)


def _text(path: Path, error: type[FedloraError], remedy: str) -> str:
    try:
        return read_bounded(path, MAX_TEMPLATE_BYTES).decode("utf-8")
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}; {remedy}") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text: byte {problem.start} is wrong; {remedy}") from None


def _sources(value: object, place: str, error: type[FedloraError]) -> tuple[str | None, str | None]:
    """The template itself, or the one named `default` of several; and the one named `tool_use`, where there is one."""
    match value:
        case None | str():
            return value, None
        case list() if all(isinstance(one, dict) for one in value):
            named = {str(one.get("name")): one.get("template") for one in value}
            if isinstance(template := named.get("default"), str):
                tool_template = named.get("tool_use")
                return template, tool_template if isinstance(tool_template, str) else None
            names = ", ".join(named) or "nothing"
            raise error(f"{place}: expected a template named default, got {names}; name one of them default")
    raise error(f"{place}: expected a template or a list of named ones, got {type(value).__name__}")


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """{name: text} of the special tokens, each given as its text or as an object with `content`."""
    given = {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items()}
    found = {k: t for k, t in given.items() if k.endswith("_token") and isinstance(t, str) and len(t) <= _MAX_TOKEN}
    return dict(list(found.items())[:_MAX_TOKENS])
