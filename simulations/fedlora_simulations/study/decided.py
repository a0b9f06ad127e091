"""What the runs of a study compute with, decided once: numbers of one table must not differ by how they were computed."""

from __future__ import annotations

import dataclasses

from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError

from fedlora_simulations.simulation import settled
from fedlora_simulations.study.definition import Study
from fedlora_simulations.study.plan import all_runs
from fedlora_simulations.study.results import Results

KEYS = ("compute", "kernels", "device")  # of the section `train`: what "auto" leaves to the machine


def decided(study: Study, results: Results) -> dict[str, str]:
    """{key: value} for each key that is left to the machine: as in the runs that there are, else as this one chooses.

    Raises ConfigError where this machine does not have what the runs so far were computed with.
    """
    found: dict[str, str] = {}
    for run in all_runs(study, results):
        result = results.done(run.digest)
        for key in KEYS:
            value = result.config.get(f"train.{key}") if result else None
            if isinstance(value, str) and getattr(run.config.train, key) == "auto":
                found.setdefault(key, value)
    try:
        chosen = settled(with_decided(RunConfig(), found)).train
    except ConfigError as error:
        so_far = ", ".join(f"train.{key} = {value}" for key, value in found.items())
        raise ConfigError(
            f"{results.path}: the runs so far have {so_far}, and here {error}; go on where they ran, or name another output"
        ) from None
    return {key: getattr(chosen, key) for key in KEYS}


def with_decided(config: RunConfig, values: dict[str, str]) -> RunConfig:
    """`config` with `values` for the keys that it leaves to the machine."""
    train = config.train
    changes = {key: value for key, value in values.items() if getattr(train, key) == "auto"}
    return dataclasses.replace(config, train=dataclasses.replace(train, **changes))  # type: ignore[arg-type]
