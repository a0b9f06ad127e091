"""Which runs a study has, in which order, and which learning rate each row gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedlora_simulations.study.definition import SCORES, Run, Study
from fedlora_simulations.study.results import Results


@dataclass(frozen=True, slots=True)
class Choice:
    """The learning rate with the best final value: the least loss, or the highest score."""

    lr: float
    edge: Literal["", "lowest", "highest"] = ""  # of the grid: a better one may lie beyond


def tuning_runs(study: Study) -> list[Run]:
    """Every row with every learning rate, on the setting and seed of the tuning."""
    tuning = study.tuning
    return [study.run(row, tuning.setting, tuning.seed, lr) for row in study.rows for lr in tuning.lr]


def cell_runs(study: Study, choices: Mapping[str, Choice]) -> list[Run]:
    """The runs of the table, seed by seed, so that there is a whole table early; a row without a choice has none."""
    runs = [
        study.run(row, setting, seed, choices[row].lr)
        for seed in study.seeds
        for setting in study.settings
        for row in study.rows
        if row in choices
    ]
    return _once(runs)


def choose(study: Study, results: Results) -> dict[str, Choice]:
    """{row: its learning rate}, of those of its tuning runs that did not fail."""
    choices = {}
    for row in study.rows:
        values = {lr: value for lr, value in tuning_values(study, row, results).items() if value is not None}
        if values:
            sign = -1 if study.tuning.choose_by in SCORES else 1
            best, lr = min(values, key=lambda lr: (sign * values[lr], lr)), study.tuning.lr
            choices[row] = Choice(best, _edge(best, lr))
    return choices


def tuning_values(study: Study, row: str, results: Results) -> dict[float, float | None]:
    """{learning rate: what is chosen by, at the end}, None where there is none: not yet run, or failed."""
    tuning, values = study.tuning, {}
    for lr in tuning.lr:
        result = results.done(study.run(row, tuning.setting, tuning.seed, lr).digest)
        values[lr] = result.value(tuning.choose_by) if result else None
    return values


def all_runs(study: Study, results: Results) -> list[Run]:
    """The tuning runs and the cells; rows that are not tuned yet stand with some learning rate, for counting."""
    anyhow = {row: Choice(study.tuning.lr[0]) for row in study.rows}
    return _once([*tuning_runs(study), *cell_runs(study, anyhow | choose(study, results))])


def _edge(lr: float, grid: tuple[float, ...]) -> Literal["", "lowest", "highest"]:
    if len(grid) == 1:
        return ""
    return "lowest" if lr == grid[0] else "highest" if lr == grid[-1] else ""


def _once(runs: Iterable[Run]) -> list[Run]:
    """The first of each group of equal runs: settings with the same devices share one pooled run."""
    found: dict[str, Run] = {}
    for run in runs:
        found.setdefault(run.digest, run)
    return list(found.values())


def as_it_began(study: Study, results: Results) -> Study:
    """The study as its results were made: a default may be younger, and all numbers of a table must be of one kind."""
    return study.as_before() if results.are_from_before else study
