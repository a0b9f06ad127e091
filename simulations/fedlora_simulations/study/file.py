"""A study's file: TOML.

    name = "methods"
    methods = ["fedavg", "svd"]      # each a row of the table: server.method
    seeds = [1, 2, 3]

    [variants]                       # more rows: a name, and the keys that it changes
    "svd + fedavgm" = { server.method = "svd", aggregation.optimizer = "fedavgm" }

    [settings]                       # each a table
    "10 devices" = { simulation.devices = 10 }
    "10 devices, 2 a round" = { simulation.devices = 10, server.devices_per_round = 2 }

    [tuning]                         # of train.lr, for each row
    lr = [0.001, 0.003]
    setting = "10 devices"
    seed = 1
    choose_by = "loss"               # or another number of the devices' held-out data: accuracy, worst_tenth, ...

    [scenario]                       # the keys that all runs share
    train.steps = 5

    [long]                           # what `--long` replaces in all of the above
    scenario.train.steps = 50

A path in it counts from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.config.run import Scalar
from fedlora.errors import ConfigError, MissingExtraError
from fedlora.files.documents import flattened, read_toml
from fedlora.nearest import unknown_key
from fedlora_server.aggregation.robust_rule import find_robust_rule
from fedlora_server.methods import find_method

from fedlora_simulations.study.definition import CHOOSE_BY, LOSS, POOLED, Changes, Study, Tuning

_AXES = {
    "name": "a run has the study's", "output": "a study keeps no run", "seed": "seeds has them", "train.lr": "it is tuned"
}  # fmt: skip
_KEYS = ("name", "methods", "variants", "settings", "seeds", "tuning", "scenario", "long")


_MOST = 1 << 53  # of a number: TOML's integers have no end in Python


def read_study(path: Path | str, *, long: bool = False) -> Study:
    """Read a study's TOML file. Raises ConfigError, with the place, for whatever could not be run."""
    path = Path(path)
    content = read_toml(path)
    _known(content, _KEYS, str(path))
    replaced = _table(content, "long", path, needed=False)
    _known(replaced, _KEYS[:-1], f"{path}: long")
    if long:
        content = _merged(content, replaced)
    study = _study(content, path)
    first = next(iter(study.methods)), study.tuning.setting
    for seed in study.seeds:
        for lr in study.tuning.lr:
            study.run(*first, seed, lr)
    for row in study.rows:
        configs = [study.run(row, setting, study.seeds[0], study.tuning.lr[0]).config for setting in study.settings]
        try:
            for config in configs:
                find_method(config.server.method)
                find_robust_rule(config.aggregation.robust)
        except (ConfigError, MissingExtraError) as error:
            raise type(error)(f"{path}: methods: {row}: {error}") from None
    return study


def _study(content: Mapping[str, Any], path: Path) -> Study:
    methods: dict[str, Changes] = {
        name: {"server.method": name} for name in _list(content, "methods", str, path, needed=False)
    }
    for group in ("variants", "settings"):
        for name, changes in _table(content, group, path, needed=group == "settings").items():
            if not isinstance(changes, dict):
                raise ConfigError(f"{path}: {group}: {name} must be a table of keys, got {changes!r}")
    for name, changes in content.get("variants", {}).items():
        if name in methods or name == POOLED:
            raise ConfigError(f"{path}: variants: there is a row {name} already; give it another name")
        methods[name] = _flat(changes, f"{path}: variants: {name}")
    if not methods:
        raise ConfigError(f"{path}: methods must name at least one method, got none")
    tuning = _table(content, "tuning", path)
    _known(tuning, ("lr", "setting", "seed", "choose_by"), f"{path}: tuning")
    settings = {name: _flat(keys, f"{path}: settings: {name}") for name, keys in content["settings"].items()}
    seeds = tuple(_list(content, "seeds", int, path))
    lr = tuple(sorted(map(float, _list(tuning, "lr", (int, float), f"{path}: tuning"))))
    setting, seed = tuning.get("setting"), tuning.get("seed")
    if not isinstance(setting, str) or setting not in settings:
        raise ConfigError(f"{path}: tuning.setting must be one of {', '.join(settings)}, got {setting!r}")
    if type(seed) is not int or seed not in seeds:
        raise ConfigError(f"{path}: tuning.seed must be one of {', '.join(map(str, seeds))}, got {seed!r}")
    choose_by = tuning.get("choose_by", LOSS)
    if choose_by not in CHOOSE_BY:
        of_test = "; the test set chooses nothing, or it would be no test" if "test" in str(choose_by) else ""
        raise ConfigError(
            f"{path}: tuning.choose_by must be one of {', '.join(CHOOSE_BY)}, got {choose_by!r:.40}{of_test}"
        )
    name = content.get("name", path.stem)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: name must be a text, got {name!r}")
    return Study(
        name=name, scenario=_flat(_table(content, "scenario", path), f"{path}: scenario"), methods=methods,
        settings=settings, seeds=seeds, file=path.resolve(),
        tuning=Tuning(lr=lr, setting=setting, seed=seed, choose_by=choose_by),
    )  # fmt: skip


def _known(content: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in keys:
            raise unknown_key(key, keys, where)


def _table(content: Mapping[str, Any], key: str, path: Path, *, needed: bool = True) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict) or (needed and not value):
        raise ConfigError(f"{path}: {key} must be a table with something in it, got {value!r}")
    return value


def _list(
    content: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: Path | str, *, needed: bool = True
) -> list[Any]:
    value = content.get(key, [])
    kinds = kind if isinstance(kind, tuple) else (kind,)
    sound = isinstance(value, list) and all(type(one) in kinds for one in value) and (value or not needed)
    if sound and any(type(one) is int and abs(one) > _MOST for one in value):
        raise ConfigError(f"{where}: {key} has a number beyond 2^53, which is not kept exactly; take a smaller one")
    if not sound or len(set(value)) < len(value):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{where}: {key} must be a list of {names}, each once, got {value!r}")
    return list(value)


def _flat(changes: Mapping[str, Any], where: str) -> dict[str, Scalar | list[Any]]:
    """{dotted key: value}. Raises ConfigError for a key that the study sets itself."""
    result = flattened(changes)
    for key in result.keys() & _AXES.keys():
        raise ConfigError(f"{where}: {key} is not a study's to set here: {_AXES[key]}; take it out")
    return result


def _merged(content: Mapping[str, Any], replaced: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with what `replaced` names of it, down to single keys."""
    result = dict(content)
    for key, value in replaced.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
