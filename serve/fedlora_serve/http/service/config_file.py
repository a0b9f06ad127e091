"""serve.toml: the configuration of a service in a file. Unknown keys are refused with the nearest known one.

host = "0.0.0.0"
adapter_folder = "adapters"         # paths count from the file
admin_key_file = "admin.key"        # or FEDLORA_ADMIN_KEY in the environment

chat_template = "chat.jinja"        # of the base, in place of the pack's

at_rest_key = "file:at-rest.key"    # of adapters that are encrypted where they lie

releases = "releases"               # what `fedlora update` writes
require_signed = ["team/*=release.pub"]  # or release_keys, where other names need no signature

[adapters]
tone = "adapters/tone"

[chat_templates]                    # of adapters, in place of their own
tone = "tone.jinja"

[limits]
max_tokens = 1024

[[keys]]
name = "web"
key_file = "web.key"                # or key_env, key_sha256, key
models = ["tone", "team-*"]
requests_per_minute = 600
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from fedlora.errors import ConfigError
from fedlora.files.at_rest_key import placed_source
from fedlora.files.documents import read_toml
from fedlora.files.ownership import open_to_others
from fedlora.nearest import unknown_key
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, create_model

from fedlora_serve.adapters.signed import split_key
from fedlora_serve.http.access.admin_key import ADMIN_ENV
from fedlora_serve.http.access.key_source import KEY_SOURCES, digest_from
from fedlora_serve.http.access.keys import ApiKey
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.limits import Limits

_logger = logging.getLogger(__name__)

_INLINE = KEY_SOURCES[0]  # the key itself, in the configuration
_ADMIN = {f"admin_{source}": source for source in KEY_SOURCES}
_NO_FILE = "the command line"
_STRICT = ConfigDict(strict=True, extra="forbid")  # "5" is no number, and true is not 1
# What is said otherwise than pydantic says it, by its type of error.
_PROBLEMS = {
    "dict_type": "must be a table",
    "list_type": "must be a list of tables, each written below [[keys]]",
    "missing": "is missing",
    "model_type": "must be a table",
}


def _below_folder(value: object, info: ValidationInfo[Path]) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path")
    return str(info.context / value)


def _printable(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not value.isprintable():
        raise ValueError("must be 1 to 64 printable characters")
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a list of names, such as ['tone', 'team-*']")
    return tuple(value)


def _origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(origin, str) for origin in value):
        raise ValueError("must be a list of origins, such as ['https://chat.example', 'http://localhost:3000']")
    return tuple(value)


def _release_keys(value: object, info: ValidationInfo[Path]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(key, str) and key for key in value):
        raise ValueError("must be a list of keys, such as ['release.pub', 'team/*=team.pub']")
    return tuple(f"{pattern}={info.context / path}" for pattern, path in (split_key(key) for key in value))


def _key_source(value: object, info: ValidationInfo[Path]) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text, such as 'file:at-rest.key'")  # noqa: TRY004 (pydantic takes ValueErrors)
    return placed_source(value, info.context)


_Path = Annotated[str, PlainValidator(_below_folder)]
_ReleaseKeys = Annotated[tuple[str, ...], PlainValidator(_release_keys)]
_Rate = Annotated[int, Field(ge=0, lt=1 << 40)]


class _Key(BaseModel):
    """One of [[keys]]; where its key comes from is for `digest_from` to check, which tells nothing of it."""

    model_config = _STRICT

    name: Annotated[str, PlainValidator(_printable)]
    models: Annotated[tuple[str, ...], PlainValidator(_names)] = ()
    requests_per_minute: _Rate = 0
    tokens_per_minute: _Rate = 0
    key: object = None
    key_sha256: object = None
    key_file: object = None
    key_env: object = None


def _table_of(kind: type, **changed: Any) -> type[BaseModel]:
    """A table whose keys are the fields of a dataclass, some `changed` or, by None, left out; a file need set none."""
    fields: dict[str, Any] = {name: (type_, None) for name, type_ in (get_type_hints(kind) | changed).items() if type_}
    return create_model(kind.__name__, __config__=_STRICT, **fields)


_LIMITS = _table_of(Limits)
_FILE = _table_of(
    ServeConfig,
    adapter_folder=_Path,
    at_rest_key=Annotated[str, PlainValidator(_key_source)],
    releases=_Path,
    require_signed=_ReleaseKeys,
    release_keys=_ReleaseKeys,
    adapters=dict[str, _Path],
    allow_origin=Annotated[tuple[str, ...], PlainValidator(_origins)],
    chat_template=_Path,
    chat_templates=dict[str, _Path],
    limits=_LIMITS,
    keys=list[_Key],
    admin=None,
    **dict.fromkeys(_ADMIN, object),
)
_TABLES: dict[str, type[BaseModel]] = {"limits": _LIMITS, "keys": _Key}


def read_config(
    path: Path | None, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> ServeConfig:
    """The configuration of a file, changed by `options`: fields of ServeConfig that the command line sets, some of
    `adapters`, `chat_templates` and `limits` among them, which the command line has checked.

    Raises ConfigError, naming the file and the key.
    """
    where, folder = str(path or _NO_FILE), Path(os.path.realpath(path)).parent if path else Path()
    values = _validated(read_toml(path), where, folder) if path else {}
    admin = {source: values.pop(name) for name, source in _ADMIN.items() if name in values}
    inline = {source for entry in values.get("keys", ()) for source in entry}
    keys = tuple(_keys(values.pop("keys", ()), folder, where, environment))
    adapters = {**values.pop("adapters", {}), **options.get("adapters", {})}
    templates = {**values.pop("chat_templates", {}), **options.get("chat_templates", {})}
    limits = {**values.pop("limits", {}), **options.get("limits", {})}
    operator = _operator(admin, folder, where, environment)
    if path and (_INLINE in (*admin, *inline)) and (told := open_to_others(path)):
        _logger.warning("%s: %s; or name a key_file, or a key_sha256, in the key's place", where, told)
    fields = {**values, **options, "adapters": adapters, "chat_templates": templates, "keys": keys, "admin": operator}
    try:
        return ServeConfig(**{**fields, "limits": Limits(**limits)})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _validated(content: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """What a file sets, of the types that the configuration has."""
    try:
        return _FILE.model_validate(content, context=folder).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]
    *parents, name = place = problem["loc"]
    if unknown:
        known = (_TABLES[str(parents[0])] if parents else _FILE).model_fields
        raise unknown_key(str(name), sorted(known), ": ".join([where, *filter(None, [_shown(parents)])]))
    told = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # No message holds what may be a key.
    may_hold_keys = problem["type"] == "missing" or (place[0] == "keys" and len(place) < 3)
    got = "" if may_hold_keys else f", got {problem['input']!r:.80}"
    raise ConfigError(f"{where}: {_shown(place)} {_PROBLEMS.get(problem['type'], told)}{got}")


def _shown(place: Sequence[str | int]) -> str:
    """`keys, number 1: name` of ("keys", 0, "name")."""
    text = ""
    for part in place:
        text += f", number {part + 1}" if isinstance(part, int) else f": {part}" if text else part
    return text


def _operator(given: Mapping[str, object], folder: Path, where: str, environment: Mapping[str, str]) -> bytes | None:
    """The sha256 of the admin key; None where there is none."""
    if environment.get(ADMIN_ENV):
        if given:
            raise ConfigError(f"the admin key is set by {ADMIN_ENV} and in {where}; leave one of them")
        return digest_from({"key_env": ADMIN_ENV}, folder, f"{ADMIN_ENV}, the admin key", environment)
    return digest_from(given, folder, f"{where}: the admin key", environment) if given else None


def _keys(
    entries: Iterable[dict[str, Any]], folder: Path, where: str, environment: Mapping[str, str]
) -> Iterable[ApiKey]:
    for number, entry in enumerate(entries, 1):
        source = {name: entry.pop(name) for name in KEY_SOURCES if name in entry}
        place = f"{where}: keys, number {number} ({entry['name']})"
        yield ApiKey(digest=digest_from(source, folder, place, environment), **entry)
