"""The configuration of one federated run: a scenario's TOML, and Flower's flat run configuration, are the same keys.

    [train]                     train.lr = 0.002
    lr = 0.002        <==>

Flower carries scalars only, so a list travels as text with commas. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.adapter import Adapter, initial_adapter
from fedlora.codec import CODECS
from fedlora.errors import ConfigError
from fedlora.family import LINEAR_MODULES, DecoderShape
from fedlora.lora import LoraConfig
from fedlora.pack import EMBEDDED

Scalar = bool | int | float | str


def _require(ok: bool, what: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"{what}, got {got!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which text each device trains on."""

    name: str = "stdlib"  # an entry point of the group fedlora.datasets
    path: str = ""  # for data sets that are read from a place
    max_bytes: int = 0  # of each device's text; 0: all of it

    def __post_init__(self) -> None:
        _require(self.max_bytes >= 0, "data.max_bytes must be 0 (all) or more", self.max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSection:
    """The adapter that the run trains."""

    rank: int = 16
    alpha: float = 32.0
    use_rslora: bool = False
    target_modules: tuple[str, ...] = LINEAR_MODULES

    def __post_init__(self) -> None:
        self.lora()

    def lora(self) -> LoraConfig:
        return LoraConfig(
            rank=self.rank, alpha=self.alpha, use_rslora=self.use_rslora, target_modules=self.target_modules
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What a device does in one round."""

    steps: int = 20
    batch_size: int = 8
    sequence_length: int = 128  # tokens of a training window
    lr: float = 2e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clipping

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "train.steps must be at least 1", self.steps)
        _require(self.batch_size >= 1, "train.batch_size must be at least 1", self.batch_size)
        _require(self.sequence_length >= 2, "train.sequence_length must be at least 2", self.sequence_length)
        _require(0 < self.lr < 1, "train.lr must be between 0 and 1", self.lr)
        _require(0 <= self.weight_decay < 1, "train.weight_decay must be from 0 to 1", self.weight_decay)
        _require(self.max_grad_norm >= 0, "train.max_grad_norm must be 0 (none) or more", self.max_grad_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server runs its rounds."""

    rounds: int = 5
    method: str = "svd"
    devices_per_round: int = 0  # 0: all that are connected
    min_devices: int = 1  # connected before the first round, and sound replies in every round
    round_timeout_s: float = 600.0
    evaluate: bool = True  # held-out loss on every device after each round
    codec: str = "f32"

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "server.rounds must be at least 1", self.rounds)
        _require(
            self.devices_per_round >= 0, "server.devices_per_round must be 0 (all) or more", self.devices_per_round
        )
        _require(self.min_devices >= 1, "server.min_devices must be at least 1", self.min_devices)
        _require(self.round_timeout_s > 0, "server.round_timeout_s must be positive", self.round_timeout_s)
        _require(self.codec in CODECS, f"server.codec must be one of {', '.join(CODECS)}", self.codec)
        cap = self.devices_per_round or self.min_devices
        _require(
            self.min_devices <= cap, f"server.min_devices must be at most devices_per_round ({cap})", self.min_devices
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """What only a simulation needs: how many devices there are."""

    devices: int = 8

    def __post_init__(self) -> None:
        _require(self.devices >= 1, "simulation.devices must be at least 1", self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One federated run."""

    name: str = "run"
    base: str = "nano"  # a base pack: `nano`, or a directory
    seed: int = 1
    output: str = ""  # the run's directory; empty: runs/NAME-TIME in a simulation, else below $FEDLORA_HOME/runs
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraSection = field(default_factory=LoraSection)
    train: TrainConfig = field(default_factory=TrainConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        word = re.fullmatch(r"\w[\w.-]*", self.name)
        _require(word is not None, "name must be letters, digits, '-', '_' and '.', and not begin with '.'", self.name)
        _require(0 <= self.seed < 1 << 32, "seed must be from 0 to 2^32 - 1", self.seed)

    def first_adapter(self, shape: DecoderShape) -> Adapter:
        """The adapter that the run begins with: the same for the same seed."""
        return initial_adapter(self.lora.lora(), shape.linear_modules(), np.random.default_rng([self.seed, 0]))

    def flat(self) -> dict[str, Scalar]:
        """{dotted key: scalar}, as Flower carries it."""
        return {key: ",".join(v) if isinstance(v, tuple) else v for key, v in _leaves(self)}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], where: str) -> RunConfig:
        """Raises ConfigError for an unknown key, a value of another type, or one out of range; `where` names the source."""
        known = dict(_leaves(cls()))
        parts: dict[str, dict[str, Any]] = {"": {}}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
                raise ConfigError(f"{where}: unknown key {key}; {hint}")
            section, _, leaf = key.rpartition(".")
            parts.setdefault(section, {})[leaf] = _converted(value, known[key], f"{where}: {key}")
        try:
            types = {f.name: f.default_factory for f in dataclasses.fields(cls)}
            sections = {name: types[name](**content) for name, content in parts.items() if name}  # type: ignore[operator]
            return cls(**parts[""], **sections)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def read_scenario(path: Path) -> RunConfig:
    """Read a scenario's TOML file. A relative `base`, `data.path` or `output` counts from the file. Raises ConfigError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    config = RunConfig.from_flat(dict(_flattened(content)), str(path))
    source, folder = str(path), path.resolve().parent
    base, data = config.base, config.data
    if base != EMBEDDED:
        base = _from(folder, base, f"{source}: base")
    if data.path:
        data = dataclasses.replace(data, path=_from(folder, data.path, f"{source}: data.path"))
    output = _from(folder, config.output, f"{source}: output") if config.output else ""
    return dataclasses.replace(config, base=base, data=data, output=output)


def _from(folder: Path, path: str, where: str) -> str:
    try:
        return os.path.normpath(folder / Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{where}: {path}: {error}") from None


def _flattened(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    result = []
    for key, value in content.items():
        result += _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return result


def _leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        key = prefix + part.name
        result += _leaves(value, f"{key}.") if dataclasses.is_dataclass(value) else [(key, value)]
    return result


def _converted(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, tuple):
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts)
        raise ConfigError(f"{where} must be a list of strings, got {value!r}")
    if isinstance(default, float) and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{where} must be of type {type(default).__name__}, got {value!r:.40}")
    return value
