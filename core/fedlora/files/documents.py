"""JSON and TOML files that somebody else may have written, read with one clear error."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError, FedloraError
from fedlora.files.bounded import read_bounded
from fedlora.files.file_kind import kind_of
from fedlora.nearest import beside

_MAX_BYTES, _MAX_TOML_BYTES = 1 << 24, 1 << 20
# tomllib takes the square of a key's parts, in time and memory; no key of ours has more than four.
_MAX_DOTS, _MAX_DEPTH = 512, 32  # in a line; of tables and lists in one another
_MOST_NAMED = 5  # files in a message
_BYTES_PER_CONTAINER = 32  # at least, of a JSON file: a list takes 56 bytes of memory, and two of the file


def read_object(path: Path, error: type[FedloraError], expected: str, *, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The JSON object in `path`. Raises `error`, saying what was `expected` there, for anything else."""
    try:
        content = read_bounded(path, max_bytes)
        containers, most = content.count(b"[") + content.count(b"{"), max_bytes // _BYTES_PER_CONTAINER
        if containers > most:
            raise error(f"{path}: {containers} lists and objects; expected {expected}, with at most {most}")
        value = json.loads(content.decode("utf-8"))
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}; expected {expected}") from None
    except (ValueError, RecursionError) as problem:
        found = kind_of(path)
        if found is not None and not (found.is_text or isinstance(problem, RecursionError)):
            raise error(found.instead_of(path, expected)) from None
        raise error(f"{path}: not JSON: {problem}; expected {expected}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, got {type(value).__name__}; this should be {expected}")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Its content. Raises ConfigError, naming the file and what is wrong."""
    try:
        content = read_bounded(path, _MAX_TOML_BYTES)
        for number, line in enumerate(content.splitlines(), 1):
            if (dots := line.count(b".")) > _MAX_DOTS:
                raise ConfigError(f"{path}: line {number} has {dots} dots; expected a key of a few parts: shorten it")
        values = tomllib.loads(content.decode("utf-8"))
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder; expected a TOML file{_toml_within(path)}") from None
    except OSError as error:
        more = beside(path)
        raise ConfigError(f"{path}: cannot be read: {error.strerror}" + (f"; {more}" if more else "")) from None
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a bare ValueError
        raise ConfigError(f"{path}: not TOML: {error}; write that line as TOML has it") from None
    if b"\\u0000" in content.lower() and _has_null(values):
        raise ConfigError(f"{path}: a text with a null character, which no name, path or address has; take it away")
    if _is_deep(values):
        raise ConfigError(f"{path}: tables or lists within one another more than {_MAX_DEPTH} deep; take some away")
    return values


def _toml_within(folder: Path) -> str:
    """What of a folder may have been meant by whoever named it for a file."""
    found = sorted(path.name for path in islice(folder.glob("*.toml"), _MOST_NAMED + 1))
    if found:
        more = ", ..." if len(found) > _MOST_NAMED else ""
        return (
            f", such as {folder / found[0]}"
            if len(found) == 1
            else f": name one of {', '.join(found[:_MOST_NAMED])}{more}"
        )
    if (folder / "config.json").is_file() and (folder / "rounds").is_dir():
        return f"; it holds a run: fedlora resume {folder} goes on with it"
    return ", and there is none in it"


def _has_null(values: dict[str, Any]) -> bool:
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if isinstance(value, str) and "\0" in value:
            return True
        left += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return False


def _is_deep(values: dict[str, Any]) -> bool:
    """Whether something lies deeper than all who read it go; without recursion, for it may be deep indeed."""
    level: list[Any] = [values]
    for _ in range(_MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for some in inner for value in some if isinstance(value, (dict, list))]
    return bool(level)


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}: a table's keys stand behind its own, as in train.lr."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
