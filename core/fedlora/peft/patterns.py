"""How PEFT's configuration speaks of modules: patterns, targets and layers, by its own rules (peft 0.21, tuners_utils)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedlora.errors import ConfigError
from fedlora.peft.name_pattern import NamePattern

_MAX_EXPRESSIONS = 16  # in a pattern, beside plain names
_MAX_NAMES = 4096  # in a pattern; each is compiled, and tried on every module
# A name, with its dots escaped or not: it has nothing to repeat, and Python's matcher takes no time. Neither does this: a
# letter can be read in one way only, and none is given back.
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\[.-])*+\$?")


def by_module(pattern: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """{module: value} of `rank_pattern` or `alpha_pattern`: of the first key that fits a module, or the end of one.

    Raises ConfigError for an expression that is not understood.
    """
    if len(pattern) > _MAX_NAMES:
        raise ConfigError(
            f"a pattern has {len(pattern)} names; at most {_MAX_NAMES} are read: take out what names no module"
        )
    matchers: list[tuple[Callable[[str], bool], Any]] = []
    expressions = 0
    for key, value in pattern.items():
        if _PLAIN.fullmatch(key):
            matchers.append((_plain(key), value))
        else:
            expressions += 1
            matchers.append((NamePattern(key).matches, value))
    if expressions > _MAX_EXPRESSIONS:
        raise ConfigError(f"a pattern has {expressions} expressions; at most {_MAX_EXPRESSIONS} are read, beside names")
    result = {}
    for module in modules:
        fitting = next(((value,) for matches, value in matchers if matches(module)), None)
        if fitting:
            result[module] = fitting[0]
    return result


def untargeted(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """Those of `modules` that PEFT would give no adapter by this configuration, and whose tensors it would not load.

    Targets that are an expression are not looked at: there the tensors say what was trained. Raises ConfigError.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if targets is None or isinstance(targets, str):
        targets = None
    elif not _names(targets):
        raise ConfigError(f"target_modules must be names, got {targets!r:.120}")
    if isinstance(excluded, str):
        excluded = []
    elif not _names(excluded):
        raise ConfigError(f"exclude_modules must be names, got {excluded!r:.120}")
    layers = _layers(config.get("layers_to_transform"))
    numbered = _layer_numbers(config.get("layers_pattern"))
    wrong = []
    for module in modules:
        hit = targets is None or module in targets or _ends(module, targets)
        # A module that is named in full is a target whatever its layer.
        if hit and targets is not None and layers and module not in targets:
            hit = numbered(module) in layers
        if not hit or module in excluded or _ends(module, excluded):
            wrong.append(module)
    return wrong


def _plain(key: str) -> Callable[[str], bool]:
    compiled = re.compile(rf"(?:.*\.)?(?:{key})$")
    return lambda name: compiled.match(name) is not None


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _ends(module: str, names: Sequence[str]) -> bool:
    return any(module.endswith(f".{name}") for name in names)


def _layers(value: object) -> list[int]:
    layers: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(layer) is not int for layer in layers):
        raise ConfigError(f"layers_to_transform must be layers by number, got {value!r:.120}")
    return layers


def _layer_numbers(pattern: object) -> Callable[[str], int | None]:
    """The function that finds the number of a module's layer in its name: PEFT takes the first."""
    names: Any = [] if not pattern else [pattern] if isinstance(pattern, str) else pattern
    if not _names(names) or not all(re.fullmatch(r"\w+", name) for name in names):
        raise ConfigError(f"layers_pattern must be names, got {pattern!r:.120}")

    def number(module: str) -> int | None:
        parts = module.split(".")
        for wanted in names or [None]:
            for place in range(1 if wanted else 2, len(parts) - 1):
                if re.fullmatch(r"[0-9]{1,9}", parts[place]) and wanted in (None, parts[place - 1]):
                    return int(parts[place])
        return None

    return number
