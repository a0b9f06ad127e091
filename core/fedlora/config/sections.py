"""The sections of a run's configuration: what is trained on, what is trained, and how; `leading` has the server's.

Each is validated when it is made; a message gives the value that came and those that it takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from fedlora.base.prompt_start import PROMPT_INITS
from fedlora.base.starts import INITS
from fedlora.config.hub_source import hub_source, is_hub
from fedlora.config.partition import PartitionConfig
from fedlora.config.rate import AUTO, default_rate
from fedlora.config.require import require
from fedlora.errors import ConfigError
from fedlora.family import HEAD, ModelShape
from fedlora.family.encoder import HEAD_PARTS
from fedlora.lora.config import ALL_LINEAR, KINDS, WHOLE_HEAD, LoraConfig
from fedlora.lora.kinds import BY_NAME
from fedlora.lora.layers import check_entries, chosen_layers
from fedlora.numbered import is_number

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames:
    """What the fields of a record are called in the files: prompt = "question"; empty: by their own names.

    Naming a field of one form chooses this form, where a record would be several.
    """

    text: str = ""
    label: str = ""
    prompt: str = ""
    completion: str = ""
    messages: str = ""
    instruction: str = ""
    input: str = ""
    output: str = ""
    # Not in the repr, by which devices find what they saved under earlier versions.
    choices: str = field(default="", repr=False)
    answer: str = field(default="", repr=False)
    # Of no form: says whose a record is, where data.partition.rule is natural. Not in its repr, see DataConfig.
    owner: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        named = self.given()
        require(not named or bool(self.form), "data.fields names the fields of one form (" + _forms() + ")", named)
        require(len(set(named.values())) == len(named), "data.fields must name different fields", named)

    def given(self) -> dict[str, str]:
        """{field: its name in the files}, of those of a form that have another."""
        names = dict.fromkeys(name for form in FORMS.values() for name in form)
        return {name: theirs for name in names if (theirs := getattr(self, name))}

    @property
    def form(self) -> str:
        """The form that they belong to; empty where none is named."""
        named = self.given().keys()
        return next((form for form, names in FORMS.items() if named and named <= set(names)), "")


# What a record may be, and its fields; those in OPTIONAL need not be there.
FORMS = {
    "text": ("text", "label"),
    "completion": ("prompt", "completion"),
    "choices": ("prompt", "choices", "answer"),
    "messages": ("messages",),
    "instruction": ("instruction", "input", "output"),
}
OPTIONAL = ("label", "input")


def _forms() -> str:
    return "; ".join(", ".join(names) for names in FORMS.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which text each device trains on."""

    name: str = "stdlib"  # an entry point of the group fedlora.datasets
    path: str = ""  # for data sets that are read from a place
    max_bytes: int = 0  # of each device's text; 0: all of it
    # Not in its repr, by which devices find what they saved under earlier versions.
    fields: FieldNames = field(default_factory=FieldNames, repr=False)
    partition: PartitionConfig = field(default_factory=PartitionConfig, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))  # a Path is as good as a text
        require(self.max_bytes >= 0, "data.max_bytes must be 0 (all) or more", self.max_bytes)
        is_natural, owner = self.partition.rule == "natural", self.fields.owner
        require(
            bool(owner) or not is_natural,
            'natural needs the field that says whose a record is, such as data.fields.owner = "user"',
            owner,
        )
        require(
            is_natural or not owner, "data.fields.owner means something to data.partition.rule = natural alone", owner
        )
        if is_hub(self.path):
            hub_source(self.path)
            require(
                self.name == "files" and bool(self.partition.rule),
                'data.path = "hf:..." is one data set, which needs data.name = "files" and a data.partition.rule',
                f"{self.name}, {self.partition.rule or 'no rule'}",
            )
        require(
            not self.partition.rule or bool(self.path),
            "data.partition needs data.path, a file or a folder of records",
            self.path,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSection:
    """The adapter that the run trains."""

    method: str = "lora"  # what it adds to the base: a kind (docs/adapters.md). How a server aggregates: server.method
    rank: int = 16
    alpha: float = 32.0
    use_rslora: bool = False
    target_modules: tuple[str, ...] = (ALL_LINEAR,)  # or names, such as q_proj and v_proj
    layers: tuple[str, ...] = ()  # numbers and ranges, "0-3" or "0,1,-1": the others get no adapter; empty: all
    # MODULE=VALUE, where MODULE is a module's name or the end of one: "down_proj=4", "layers.0.self_attn.q_proj=32"
    rank_pattern: tuple[str, ...] = ()
    alpha_pattern: tuple[str, ...] = ()
    # Trained whole beside the adapter, and saved with it: the classification head of an encoder ("classifier"; of BERT
    # also "pooler"), or, on one device alone (`fedlora train`), the head of a decoder. "auto": all of an encoder's head,
    # nothing of a decoder's. Empty: nothing.
    modules_to_save: tuple[str, ...] = (WHOLE_HEAD,)
    # Where A and B begin: default (A random, B zero), or pissa or olora, from the base's weights: `base/starts.py`. On one
    # device alone (`fedlora train`).
    init: str = "default"
    num_virtual_tokens: int = 20  # of prompt and prefix, beside the tokens of train.sequence_length
    # Where a prompt begins, by PEFT's names: SAMPLE_VOCAB, RANDOM or, on one device alone, TEXT (the next key).
    prompt_tuning_init: str = "SAMPLE_VOCAB"
    prompt_tuning_init_text: str = ""

    def __post_init__(self) -> None:
        require(self.method in KINDS, f"lora.method must be one of {', '.join(KINDS)}", self.method)
        for part in fields(self):
            value, unset = getattr(self, part.name), part.default
            require(
                part.name == "method" or part.name in BY_NAME[self.method].keys or value == unset,
                f"lora.{part.name} means nothing to lora.method = {self.method}; leave it out",
                value,
            )
        require(self.init in INITS, f"lora.init must be one of {', '.join(INITS)}", self.init)
        self._config(*self._patterns())
        require(
            self.prompt_tuning_init in PROMPT_INITS,
            f"lora.prompt_tuning_init must be one of {', '.join(PROMPT_INITS)}",
            self.prompt_tuning_init,
        )
        require(
            (self.prompt_tuning_init == "TEXT") == bool(self.prompt_tuning_init_text),
            "lora.prompt_tuning_init = TEXT and lora.prompt_tuning_init_text go together",
            self.prompt_tuning_init_text or self.prompt_tuning_init,
        )
        check_entries(self.layers, "lora.layers")
        known = (HEAD, *HEAD_PARTS, "pre_classifier")
        require(
            self.modules_to_save == (WHOLE_HEAD,) or set(self.modules_to_save) <= set(known),
            f"lora.modules_to_save takes {WHOLE_HEAD} or heads only ({', '.join(known)})",
            self.modules_to_save,
        )

    def lora(self, modules: Iterable[str]) -> LoraConfig:
        """The configuration for a base with these modules. Raises ConfigError where a pattern fits none of them."""
        modules, (ranks, alphas) = list(modules), self._patterns()
        config = self._config(
            _by_module(ranks, modules, "lora.rank_pattern"), _by_module(alphas, modules, "lora.alpha_pattern")
        )
        config = replace(config, layers=chosen_layers(self.layers, modules, "lora.layers"))
        if self.target_modules != (ALL_LINEAR,):
            return config
        return replace(config, target_modules=BY_NAME[self.method].default_targets(modules))

    def _patterns(self) -> tuple[dict[str, int], dict[str, float]]:
        ranks = _pattern(self.rank_pattern, "lora.rank_pattern", int, "down_proj=4")
        return ranks, _pattern(self.alpha_pattern, "lora.alpha_pattern", float, "down_proj=8.0")

    def _config(self, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> LoraConfig:
        return LoraConfig(
            method=self.method, rank=self.rank, alpha=self.alpha, use_rslora=self.use_rslora,
            target_modules=self.target_modules, rank_pattern=ranks, alpha_pattern=alphas,
            num_virtual_tokens=self.num_virtual_tokens,
        )  # fmt: skip


MAX_BATCH = 1 << 16  # windows: a step's are drawn before its first part, and who asks chooses how many


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What a device does in one round, and what it computes with."""

    steps: int = 20
    batch_size: int = 8  # windows of a step, in as many parts as memory asks for
    sequence_length: int = 128  # tokens of a training window
    lr: float | str = AUTO  # auto: by the base and by what trains, `rate.default_rate`
    schedule: str = "constant"  # or linear or cosine, to 0 at the end of the last round
    warmup_steps: int = 0  # of the first round, over which lr rises from 0
    lora_plus_ratio: float = 1.0  # lr of B over lr of A (LoRA+, arXiv:2402.12354)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clipping
    fedprox_mu: float = 0.0  # pulls A and B back to those of the round's start (FedProx, arXiv:1812.06127)
    # Times the logarithm of how frequent each label is in a device's data, added to the scores of a text while they are
    # learned: a label that it lacks is then not unlearned (logit adjustment, arXiv:2007.07314, in a federation
    # arXiv:2209.00189).
    label_prior: float = 0.0
    dropout: float = 0.0  # of what the adapters see of each module's input
    memory_mb: int = 0  # that the process may take in all; 0: what it likes
    checkpointing: str = "auto"  # compute activations again in the backward: on, off, or auto: as memory asks for
    compute: str = "auto"  # float32, bfloat16, or auto: the faster one on this machine
    kernels: str = "auto"  # in C: on, off, or auto: where they compile
    device: str = "auto"  # cpu, cuda, or auto: a GPU where there is one

    def __post_init__(self) -> None:
        require(self.steps >= 1, "train.steps must be at least 1", self.steps)
        require(self.batch_size >= 1, "train.batch_size must be at least 1", self.batch_size)
        require(self.batch_size <= MAX_BATCH, f"train.batch_size must be at most {MAX_BATCH}", self.batch_size)
        require(self.sequence_length >= 2, "train.sequence_length must be at least 2", self.sequence_length)
        is_auto = self.lr == AUTO
        require(is_auto or not isinstance(self.lr, str), "train.lr must be of type float, or auto", self.lr)
        require(is_auto or 0 < self.rate < 1, "train.lr must be between 0 and 1", self.lr)
        require(0 <= self.weight_decay < 1, "train.weight_decay must be from 0 to 1", self.weight_decay)
        require(self.max_grad_norm >= 0, "train.max_grad_norm must be 0 (none) or more", self.max_grad_norm)
        require(0 <= self.fedprox_mu < math.inf, "train.fedprox_mu must be 0 (none) or more", self.fedprox_mu)
        require(0 <= self.label_prior <= 10, "train.label_prior must be from 0 (none) to 10", self.label_prior)
        require(self.warmup_steps >= 0, "train.warmup_steps must be 0 or more", self.warmup_steps)
        require(0 < self.lora_plus_ratio <= 1000, "train.lora_plus_ratio must be up to 1000", self.lora_plus_ratio)
        require(
            is_auto or self.rate * self.lora_plus_ratio < 1,
            "train.lr times lora_plus_ratio must be below 1",
            self.lora_plus_ratio,
        )
        require(0 <= self.dropout < 1, "train.dropout must be from 0 to 1", self.dropout)
        require(self.memory_mb >= 0, "train.memory_mb must be 0 (no bound) or more", self.memory_mb)
        choices = {
            "schedule": ("constant", "linear", "cosine"), "checkpointing": ("auto", "on", "off"),
            "compute": ("auto", "float32", "bfloat16"), "kernels": ("auto", "on", "off"),
        }  # fmt: skip
        for name, known in choices.items():
            got = getattr(self, name)
            require(got in known, f"train.{name} must be one of {', '.join(known)}", got)

    @property
    def rate(self) -> float:
        """`lr` as a number. Raises ConfigError where it was left to fedlora, and nobody settled it for a base yet."""
        if isinstance(self.lr, str):
            raise ConfigError(f"train.lr is {self.lr}: give it a number, or take TrainConfig.with_rate")
        return self.lr

    def with_rate(self, model: ModelShape, method: str, *, all_weights: bool = False) -> TrainConfig:
        """With `lr` a number, for this base and `lora.method`, or for training all weights."""
        if self.lr != AUTO:
            return self
        return replace(self, lr=default_rate(model, BY_NAME[method], all_weights=all_weights))


_MOST_DEVICES = 1_000_000  # of a simulation, which holds something of each


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """What only a simulation needs: how many devices there are, and what they can."""

    devices: int = 8
    workers: int = 0  # devices that work at a time; 0: one for each core
    ranks: tuple[str, ...] = ()  # the largest rank of each device, dealt out in turn, as in "4,8,16"; empty: any

    def __post_init__(self) -> None:
        known = f"simulation.devices must be from 1 to {_MOST_DEVICES}"
        require(1 <= self.devices <= _MOST_DEVICES, known, self.devices)
        require(self.workers >= 0, "simulation.workers must be 0 (one for each core) or more", self.workers)
        for rank in self.ranks:
            require(is_number(rank) and int(rank) >= 1, "simulation.ranks must be integers from 1", rank)

    def rank_of(self, device: int) -> int:
        """The largest rank of a device, counted from 0; 0 where it takes any."""
        return int(self.ranks[device % len(self.ranks)]) if self.ranks else 0


def _pattern(entries: tuple[str, ...], where: str, kind: Callable[[str], Number], example: str) -> dict[str, Number]:
    """{MODULE: VALUE} of entries MODULE=VALUE."""
    result = {}
    for entry in entries:
        module, _, value = entry.partition("=")
        try:
            result[module.strip()] = kind(value)
        except ValueError:
            raise ConfigError(f"{where}: expected MODULE=VALUE such as {example}, got {entry!r}") from None
    return result


def _by_module(pattern: Mapping[str, Number], modules: list[str], where: str) -> dict[str, Number]:
    """The values by the full names of the modules; the longest of the entries that fit a module counts."""
    result: dict[str, Number] = {}
    for end in sorted(pattern, key=len):
        fitting = [module for module in modules if module == end or module.endswith(f".{end}")]
        if not fitting:
            raise ConfigError(f"{where}: the base has no module {end}; it has such as {modules[0]}")
        result |= dict.fromkeys(fitting, pattern[end])
    return result
