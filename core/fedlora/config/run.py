"""The configuration of one federated run: a scenario's TOML, and Flower's flat run configuration, are the same keys.

    [train]                     train.lr = 0.002
    lr = 0.002        <==>

Flower carries scalars only, so a list travels as text with commas. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from fedlora.base.heads import initial_extras
from fedlora.base.pack import EMBEDDED, BasePack
from fedlora.base.prompt_start import embeddings_of
from fedlora.base.quantize import dequantize
from fedlora.config.hub_source import PREFIX, is_hub, is_local
from fedlora.config.leading import AggregationConfig, ServerConfig
from fedlora.config.rate import AUTO
from fedlora.config.require import require
from fedlora.config.sections import DataConfig, FieldNames, LoraSection, SimulationConfig, TrainConfig
from fedlora.errors import ConfigError
from fedlora.files.documents import flattened, read_toml
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.kinds import BY_NAME, new_adapter
from fedlora.lora.kinds.virtual import WORD
from fedlora.nearest import unknown_key

__all__ = [
    "AggregationConfig", "DataConfig", "FieldNames", "LoraSection", "RunConfig", "Scalar", "ServerConfig",
    "SimulationConfig", "TrainConfig", "changed", "read_scenario",
]  # fmt: skip

Scalar = bool | int | float | str
_OF_NUMBERS = ("lora.layers",)  # lists whose entries may be numbers
_OR_AUTO = ("train.lr",)  # numbers that may be left to fedlora
Made = TypeVar("Made")


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
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        for name in ("base", "output"):  # a Path is as good as a text
            object.__setattr__(self, name, os.fspath(getattr(self, name)))
        word = re.fullmatch(r"\w[\w.-]*", self.name)
        require(word is not None, "name must be letters, digits, '-', '_' and '.', and not begin with '.'", self.name)
        require(0 <= self.seed < 1 << 32, "seed must be from 0 to 2^32 - 1", self.seed)
        kind = BY_NAME[self.lora.method]
        require(
            kind.takes_dropout or not self.train.dropout,
            f"train.dropout means nothing to lora.method = {kind.name}; leave it out",
            self.train.dropout,
        )
        require(
            kind.has_factors or self.train.lora_plus_ratio == 1,
            f"train.lora_plus_ratio is for factors A and B, and lora.method = {kind.name} has none; leave it out",
            self.train.lora_plus_ratio,
        )
        require(
            self.server.evaluate or not self.data.partition.held_out,
            "data.partition.held_out needs server.evaluate = true: who never trains is there to be measured",
            self.data.partition.held_out,
        )

    def settled(self, base: BasePack) -> RunConfig:
        """With a number for what the base decides: `train.lr`."""
        return dataclasses.replace(self, train=self.train.with_rate(base.model, self.lora.method))

    def first_adapter(self, base: BasePack) -> Adapter:
        """The adapter that the run begins with: the same for the same seed and base.

        Raises ConfigError where it is to begin from the base's weights: a federation's methods know no frozen start yet.
        """
        if self.lora.init != "default":
            raise ConfigError(
                f"lora.init = {self.lora.init} is for one device alone, with fedlora train; a run of several takes default"
            )
        if self.lora.prompt_tuning_init == "TEXT":
            raise ConfigError(
                "lora.prompt_tuning_init = TEXT is for one device alone, with fedlora train: a server has no tokenizer; a "
                "run of several takes SAMPLE_VOCAB or RANDOM"
            )
        config, generator = self.lora.lora(base.model.linear_modules()), np.random.default_rng([self.seed, 0])
        adapter = new_adapter(config, base.model, lambda module: dequantize(base.matrix(module)), generator)
        if self.lora.method == "prompt" and self.lora.prompt_tuning_init == "SAMPLE_VOCAB":
            tokens = generator.integers(0, base.shape.vocab_size, config.num_virtual_tokens)
            adapter = with_extras(adapter, {WORD: embeddings_of(base, tokens)})
        return with_extras(adapter, {**adapter.extras, **initial_extras(self.lora.modules_to_save, base)})

    def flat(self) -> dict[str, Scalar]:
        """{dotted key: scalar}, as Flower carries it."""
        return {key: ",".join(v) if isinstance(v, tuple) else v for key, v in _leaves(self)}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], where: str) -> RunConfig:
        """Raises ConfigError for an unknown key, a value of another type, or one out of range; `where` names the source."""
        known = dict(_leaves(cls()))
        leaves: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise unknown_key(key, known, where)
            value = _as_texts(value) if key in _OF_NUMBERS else value
            place = f"{where}: {key}"
            leaves[key] = _number_or_auto(value, place) if key in _OR_AUTO else _converted(value, known[key], place)
        try:
            return _made(cls, leaves)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def changed(config: RunConfig, changes: Iterable[str], where: str = "--set") -> RunConfig:
    """`config` with some keys changed, each given as KEY=VALUE with a value as in TOML; a word needs no quotes."""
    values: dict[str, Any] = dict(config.flat())
    known = dict(_leaves(config))
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise ConfigError(f"{where} {change}: expected KEY=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
            is_a_word = isinstance(known.get(key), tuple) and not isinstance(value, list | str)
            values[key] = text.strip() if is_a_word else value  # a list of one, as in simulation.ranks=4
        except tomllib.TOMLDecodeError:
            values[key] = text
    return RunConfig.from_flat(values, where)


def read_scenario(path: str | Path) -> RunConfig:
    """Read a scenario's TOML file. A relative `base`, `data.path` or `output` counts from the file. Raises ConfigError."""
    path = Path(path)
    config = RunConfig.from_flat(flattened(read_toml(path)), str(path))
    source, folder = str(path), Path(os.path.realpath(path)).parent
    base, data = config.base, config.data
    if base != EMBEDDED:
        base = _from(folder, base, f"{source}: base")
    if data.path:
        data = dataclasses.replace(data, path=located(folder, data.path, f"{source}: data.path"))
    output = _from(folder, config.output, f"{source}: output") if config.output else ""
    return dataclasses.replace(config, base=base, data=data, output=output)


def located(folder: Path, path: str, where: str) -> str:
    """A data.path that counts from `folder`; a name on the hub stays as it is. Raises ConfigError."""
    if not is_hub(path):
        return _from(folder, path, where)
    return PREFIX + _from(folder, path.removeprefix(PREFIX), where) if is_local(path) else path


def _from(folder: Path, path: str, where: str) -> str:
    try:
        return os.path.normpath(folder / Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{where}: {path}: {error}") from None


def _made(kind: Callable[..., Made], leaves: Mapping[str, Any], prefix: str = "") -> Made:
    """The dataclass `kind` and those in it, from {dotted key: value}; what has no value has its default."""
    content: dict[str, Any] = {}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = prefix + part.name
        if dataclasses.is_dataclass(part.default_factory):
            content[part.name] = _made(part.default_factory, leaves, f"{key}.")
        elif key in leaves:
            content[part.name] = leaves[key]
    return kind(**content)


def _leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        key = prefix + part.name
        result += _leaves(value, f"{key}.") if dataclasses.is_dataclass(value) else [(key, value)]
    return result


def _as_texts(value: Any) -> Any:
    """A number, or a list with numbers, as what Flower would carry."""
    numbers = value if isinstance(value, list) else [value]
    texts = [str(number) if type(number) is int else number for number in numbers]
    return texts if isinstance(value, list) or type(value) is int else value


def _number_or_auto(value: Any, where: str) -> float | str:
    if value == AUTO:
        return AUTO
    if isinstance(value, str):
        raise ConfigError(f"{where} must be of type float, or {AUTO}, got {value!r:.40}")
    return cast(float, _converted(value, 0.0, where))


def _converted(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, tuple):
        parts = value.split(",") if isinstance(value, str) and value else value or []
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts)
        raise ConfigError(f"{where} must be a list of strings, got {value!r}")
    if isinstance(default, float) and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{where} must be of type {type(default).__name__}, got {value!r:.40}")
    return value
