"""A study: one scenario run with several methods, settings and seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.base.pack import EMBEDDED
from fedlora.config.run import RunConfig, Scalar, located
from fedlora.lora.config import WHOLE_HEAD

# Keys that came after studies were run, with what runs did before: there a run is known by what it was known by then.
_LATER: Mapping[str, Scalar] = {
    **{key: value for key, value in RunConfig().flat().items() if key.startswith(("data.fields.", "data.partition."))},
    "lora.layers": "",
    "lora.init": "default",
    "lora.method": "lora",
    "lora.num_virtual_tokens": 20,
    "lora.prompt_tuning_init": "SAMPLE_VOCAB",
    "lora.prompt_tuning_init_text": "",
    "train.label_prior": 0.0,
    "aggregation.max_weight": 0.0,
    "aggregation.fixed_signs": False,
    "simulation.workers": 0,
    "server.mode": "sync",
    "server.over_selection": 1.0,
    "server.buffer_size": 4,
    "server.staleness_exponent": 0.5,
    "server.max_staleness": 20,
    "server.max_share": 0.5,
}
_AS_BEFORE: Mapping[str, Scalar] = {
    "aggregation.robust": "none", "aggregation.max_weight": 0.0, "aggregation.fixed_signs": False,
}  # fmt: skip
LOSS = "loss"
# What a learning rate may be chosen by: numbers of the devices' held-out data, never of the test set.
LOSSES = (LOSS, "weighted_loss", "median_loss", "worst_tenth")
SCORES = ("accuracy", "macro_f1", "mcc", "worst_tenth_accuracy")
OF_CHOICES = ("accuracy", "worst_tenth_accuracy")  # the scores that multiple choice has too
CHOOSE_BY = (*LOSSES, *SCORES)
POOLED = "pooled"  # the row of one training on the text of all devices together

Changes = Mapping[str, Any]  # {dotted key: value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Where each row's learning rate is chosen, and from which."""

    lr: tuple[float, ...]
    setting: str
    seed: int
    choose_by: str = LOSS  # one of CHOOSE_BY


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a study."""

    row: str
    setting: str
    config: RunConfig  # with paths as the file has them
    folder: Path  # from which they count
    digest: str  # what the run is known by: equal for equal configurations, wherever the study's file lies

    @property
    def is_pooled(self) -> bool:
        return self.row == POOLED

    @property
    def windows(self) -> int:
        """That are trained on in all: what the run costs, about."""
        train, server = self.config.train, self.config.server
        asked = server.devices_per_round or self.config.simulation.devices
        return train.steps * train.batch_size * server.rounds * min(asked, self.config.simulation.devices)

    def located(self) -> RunConfig:
        """The configuration with paths that count from anywhere."""
        base, data = self.config.base, self.config.data
        if base != EMBEDDED:
            base = os.path.normpath(self.folder / Path(base).expanduser())
        if data.path:
            path = located(self.folder, data.path, f"{self.folder}: data.path")
            data = dataclasses.replace(data, path=path)
        return dataclasses.replace(self.config, base=base, data=data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What a study's file says."""

    name: str
    scenario: Changes
    methods: Mapping[str, Changes]  # {row: changed keys}, server.method among them
    settings: Mapping[str, Changes]
    seeds: tuple[int, ...]
    tuning: Tuning
    file: Path
    runs: dict[tuple[str, str, int, float], Run] = field(default_factory=dict)  # that were asked for

    @property
    def rows(self) -> tuple[str, ...]:
        """The methods and variants, then the pooled run."""
        return (*self.methods, POOLED)

    def as_before(self) -> Study:
        """The study with the defaults that it had before devices were bounded, where its file names no others."""
        return dataclasses.replace(self, scenario={**_AS_BEFORE, **self.scenario}, runs={})

    def run(self, row: str, setting: str, seed: int, lr: float) -> Run:
        """Raises ConfigError for keys that a configuration does not take; the message names their place."""
        key = (row, setting, seed, lr)
        if key not in self.runs:
            self.runs[key] = self._run(*key)
        return self.runs[key]

    def _run(self, row: str, setting: str, seed: int, lr: float) -> Run:
        changes, mine = self.settings[setting], self.methods.get(row, {})
        if row == POOLED:  # of all devices, in every round
            changes = {key: value for key, value in changes.items() if key != "server.devices_per_round"}
        values: dict[str, Any] = {"name": self.name}
        for where, more in (
            ("scenario", self.scenario), (f"settings: {setting}", changes), (f"methods: {row}", mine),
            ("seeds and tuning", {"seed": seed, "train.lr": lr}),
        ):  # fmt: skip
            values |= more
            config = RunConfig.from_flat(values, f"{self.file}: {where}")
        digest = _digest(config, is_pooled=row == POOLED)
        return Run(row=row, setting=setting, config=config, folder=self.file.parent, digest=digest)


def _digest(config: RunConfig, *, is_pooled: bool) -> str:
    flat = {
        key: value
        for key, value in config.flat().items()
        if key not in ("name", "output") and not (key in _LATER and value == _LATER[key])
    }
    if config.lora.modules_to_save == (WHOLE_HEAD,):
        flat["lora.modules_to_save"] = ""  # as it was the default, and is the same still of a decoder
    return hashlib.sha256(json.dumps([is_pooled, flat], sort_keys=True).encode()).hexdigest()[:16]
