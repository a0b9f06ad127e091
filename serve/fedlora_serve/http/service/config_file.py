"""serve.toml: the configuration of a service in a file. Unknown keys are refused with the nearest known one.

host = "0.0.0.0"
adapter_folder = "adapters"         # paths count from the file
admin_key_file = "admin.key"        # or FEDLORA_ADMIN_KEY in the environment

[adapters]
tone = "adapters/tone"

[limits]
max_tokens = 1024

[[keys]]
name = "web"
key_file = "web.key"                # or key_env, key_sha256, key
models = ["tone", "team-*"]
requests_per_minute = 600
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedlora.errors import ConfigError
from fedlora.files.documents import read_toml

from fedlora_serve.http.access.key_source import KEY_SOURCES, digest_from
from fedlora_serve.http.access.keys import ApiKey
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.limits import Limits

ADMIN_ENV = "FEDLORA_ADMIN_KEY"

_ADMIN = {f"admin_{source}": source for source in KEY_SOURCES}
_KEY_FIELDS = ("name", "models", "requests_per_minute", "tokens_per_minute")
_SECTIONS = ("adapters", "limits", "keys")
_FIELDS = {f.name for f in dataclasses.fields(ServeConfig)} - {*_SECTIONS, "admin"}
_NO_FILE = "the command line"

T = TypeVar("T")


def read_config(
    path: Path | None, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> ServeConfig:
    """The configuration of a file, changed by `options`: fields of ServeConfig that the command line sets, some of
    `adapters` and of `limits` among them.

    Raises ConfigError, naming the file and the key.
    """
    content = read_toml(path) if path else {}
    where, folder = str(path or _NO_FILE), path.resolve().parent if path else Path()
    _check_names(content, [*_FIELDS, *_SECTIONS, *_ADMIN], where)
    values = {name: content[name] for name in _FIELDS & content.keys()}
    if "adapter_folder" in values:
        values["adapter_folder"] = _below(folder, values["adapter_folder"], f"{where}: adapter_folder")
    adapters = _table(content.get("adapters", {}), f"{where}: adapters")
    values["adapters"] = {name: _below(folder, path_, f"{where}: adapters.{name}") for name, path_ in adapters.items()}
    limits = {**_table(content.get("limits", {}), f"{where}: limits"), **options.get("limits", {})}
    values["limits"] = _built(Limits, limits, f"{where}: limits")
    values["keys"] = tuple(_keys(content.get("keys", []), folder, where, environment))
    values["admin"] = _admin(content, folder, where, environment)
    values["adapters"] |= options.get("adapters", {})
    changed = {name: value for name, value in options.items() if name not in _SECTIONS}
    return _built(ServeConfig, {**values, **changed}, where)


def _admin(content: Mapping[str, Any], folder: Path, where: str, environment: Mapping[str, str]) -> bytes | None:
    given = {source: content[name] for name, source in _ADMIN.items() if name in content}
    if environment.get(ADMIN_ENV):
        if given:
            raise ConfigError(f"the admin key is set by {ADMIN_ENV} and in {where}; leave one of them")
        return digest_from({"key_env": ADMIN_ENV}, folder, f"{ADMIN_ENV}, the admin key", environment)
    return digest_from(given, folder, f"{where}: the admin key", environment) if given else None


def _keys(entries: Any, folder: Path, where: str, environment: Mapping[str, str]) -> Iterable[ApiKey]:
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: keys must be a list of tables, each written below [[keys]]")
    for number, entry in enumerate(entries, 1):
        place = f"{where}: keys, number {number}"
        entry = _table(entry, place)
        _check_names(entry, [*_KEY_FIELDS, *KEY_SOURCES], place)
        name, models = entry.get("name"), entry.get("models", [])
        if not isinstance(name, str) or not 0 < len(name) <= 64 or not name.isprintable():
            raise ConfigError(f"{place}: name must be 1 to 64 printable characters, got {name!r:.80}")
        if "models" in entry and not (isinstance(models, list) and models and all(isinstance(m, str) for m in models)):
            raise ConfigError(
                f"{place}: models must be a list of names, such as ['tone', 'team-*'], got {models!r:.80}"
            )
        rates = {rate: entry.get(rate, 0) for rate in _KEY_FIELDS[2:]}
        for rate, value in rates.items():
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise ConfigError(f"{place}: {rate} must be a whole number, 0 for any, got {value!r:.80}")
        sources = {source: entry[source] for source in KEY_SOURCES if source in entry}
        digest = digest_from(sources, folder, f"{place} ({name})", environment)
        yield ApiKey(name=name, digest=digest, models=tuple(models), **rates)


def _built(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A configuration of `kind` from values of the types that its defaults have."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _check_names(values, fields, where)
    checked = {}
    for name, value in values.items():
        default = fields[name].default
        wanted = type(default)
        if wanted is float and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if wanted in (bool, int, float, str) and type(value) is not wanted:
            raise ConfigError(f"{where}: {name} must be of type {wanted.__name__}, got {value!r:.40}")
        checked[name] = value
    try:
        return kind(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_names(values: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {name}; {hint}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table, got {value!r:.80}")
    return value


def _below(folder: Path, path: Any, where: str) -> str:
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{where} must be a path, got {path!r:.80}")
    return str(folder / path)
