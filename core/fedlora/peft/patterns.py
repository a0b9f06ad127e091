"""How PEFT's configuration speaks of modules: patterns, targets and layers, by its own rules (peft 0.21, tuners_utils)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from fedlora.errors import ConfigError
from fedlora.peft.name_pattern import NamePattern
from fedlora.peft.plain_names import PlainNames, ends, is_plain

_MAX_EXPRESSIONS = 16  # in a pattern, beside plain names
_MAX_NAMES = 4096  # in a pattern


def by_module(pattern: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """{module: value} of `rank_pattern` or `alpha_pattern`: of the first key that fits a module, or the end of one.

    Raises ConfigError for an expression that is not understood.
    """
    if len(pattern) > _MAX_NAMES:
        raise ConfigError(
            f"a pattern has {len(pattern)} names; at most {_MAX_NAMES} are read: take out what names no module"
        )
    places = {key: place for place, key in enumerate(pattern)}
    plain = {key: place for key, place in places.items() if is_plain(key)}
    if (count := len(places) - len(plain)) > _MAX_EXPRESSIONS:
        raise ConfigError(f"a pattern has {count} expressions; at most {_MAX_EXPRESSIONS} are read, beside names")
    expressions = [(place, NamePattern(key)) for key, place in places.items() if key not in plain]
    names, values, result = PlainNames(plain), list(pattern.values()), {}
    for module in modules:
        first = names.first(module)
        for place, expression in expressions:
            if first is not None and place > first:
                break
            if expression.matches(module):
                first = place
                break
        if first is not None:
            result[module] = values[first]
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
    # Sets: a list of a stranger's may have a million names, and each is asked for every module.
    wanted, unwanted = None if targets is None else frozenset(targets), frozenset(excluded)
    layers = _layers(config.get("layers_to_transform"))
    numbered = _layer_numbers(config.get("layers_pattern"))
    wrong = []
    for module in modules:
        hit = wanted is None or _is_named(module, wanted)
        # A module that is named in full is a target whatever its layer.
        if hit and wanted is not None and layers and module not in wanted:
            hit = numbered(module) in layers
        if not hit or _is_named(module, unwanted):
            wrong.append(module)
    return wrong


def _is_named(module: str, names: Collection[str]) -> bool:
    return any(end in names for end in ends(module))


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _layers(value: object) -> frozenset[int]:
    layers: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(layer) is not int for layer in layers):
        raise ConfigError(f"layers_to_transform must be layers by number, got {value!r:.120}")
    return frozenset(layers)


def _layer_numbers(pattern: object) -> Callable[[str], int | None]:
    """The function that finds the number of a module's layer in its name: PEFT takes the first."""
    names: Any = [] if not pattern else [pattern] if isinstance(pattern, str) else pattern
    if not _names(names) or not all(re.fullmatch(r"\w+", name) for name in names):
        raise ConfigError(f"layers_pattern must be names, got {pattern!r:.120}")

    first = {name: place for place, name in reversed(list(enumerate(names)))}

    def number(module: str) -> int | None:
        parts = module.split(".")
        at = [
            place
            for place in range(1 if first else 2, len(parts) - 1)
            if (not first or parts[place - 1] in first) and re.fullmatch(r"[0-9]{1,9}", parts[place])
        ]
        return int(parts[min(at, key=lambda place: first.get(parts[place - 1], 0))]) if at else None

    return number
