"""The numbers of a study's tables, from its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean, stdev

from fedlora.counted import counted

from fedlora_simulations.study.definition import POOLED, Study
from fedlora_simulations.study.plan import all_runs, choose
from fedlora_simulations.study.results import Result, Results

BASE = "base"  # the row of the base as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of one setting's table: means over the seeds that there are, nan where there is none."""

    name: str
    loss: float = nan  # final, held-out, nats per token, of an encoder per text
    deviation: float = nan  # of it between seeds, that of a sample; nan with fewer than two
    above_pooled: float = nan
    below_base: float = nan
    kb_down: float = nan
    kb_up: float = nan
    aggregation_error: float = nan
    server_s: float = nan
    remarks: tuple[str, ...] = ()  # what a reader of the numbers has to know

    @property
    def is_method(self) -> bool:
        return self.name not in (BASE, POOLED)


def lines(study: Study, results: Results, setting: str) -> list[Line]:
    """The rows of a setting, the least loss first; those without a loss come last, in the order of the study."""
    choices = choose(study, results)
    done: dict[str, list[Result]] = {}
    remarks: dict[str, list[str]] = {row: [] for row in study.rows}
    for row in study.rows:
        found = []
        if row not in choices:
            remarks[row].append(_untuned(study, row, results))
        else:
            runs = [study.run(row, setting, seed, choices[row].lr) for seed in study.seeds]
            found = [result for run in runs if (result := results.get(run.digest))]
            if len(found) < len(runs):
                remarks[row].append(f"{len(found)} of {counted(len(runs), 'seed')} have run")
            remarks[row] += [f"seed {result.seed} failed: {result.failure}" for result in found if result.failure]
        done[row] = [result for result in found if not result.failure]
        excluded: Counter[str] = Counter()
        for result in done[row]:
            excluded.update(result.excluded)
        if excluded:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items()))
            remarks[row].append(f"answers that did not count: {reasons}")
    base = _mean([r.base_loss for row in study.methods for r in done[row]])
    pooled = _mean([r.loss for r in done[POOLED]])
    table = [Line(name=BASE, loss=base, above_pooled=base - pooled)]
    for row, found in done.items():
        losses = [r.loss for r in found if r.loss is not None]
        loss = _mean(losses)
        table.append(
            Line(
                name=row, loss=loss, deviation=stdev(losses) if len(losses) > 1 else nan,
                above_pooled=nan if row == POOLED else loss - pooled, below_base=base - loss,
                kb_down=_mean([r.bytes_down for r in found]) / 1e3, kb_up=_mean([r.bytes_up for r in found]) / 1e3,
                aggregation_error=_mean([r.aggregation_error for r in found]),
                server_s=_mean([r.server_s for r in found]), remarks=tuple(remarks[row]),
            )
        )  # fmt: skip
    return sorted(table, key=lambda line: (line.loss != line.loss, line.loss if line.loss == line.loss else 0))


def data_sentence(study: Study, results: Results, setting: str) -> str:
    """What of the data a setting's runs train on; empty where no run of it told."""
    for run in all_runs(study, results):
        result = results.get(run.digest)
        if run.setting == setting and result and result.examples is not None:
            cut = f", {result.cut_examples} of them cut" if result.cut_examples else ""
            left_out = f", {result.left_out_examples} left out" if result.left_out_examples else ""
            devices = int(result.config["simulation.devices"])
            return (
                f"Data: {counted(result.examples, 'example')} trained on{cut}{left_out}; {result.held_out_examples} "
                f"measured; on {counted(devices, 'device')}."
            )
    return ""


def loss_unit(study: Study, results: Results) -> str:
    """What the losses are counted by."""
    units = (result.loss_unit for run in all_runs(study, results) if (result := results.get(run.digest)))
    return next((unit for unit in units if unit != "token"), "token")


def _untuned(study: Study, row: str, results: Results) -> str:
    """Why a row has no learning rate."""
    tuning = study.tuning
    for lr in tuning.lr:
        result = results.get(study.run(row, tuning.setting, tuning.seed, lr).digest)
        if result and result.failure:
            return f"not tuned: lr {lr:g} failed: {result.failure}"
        if result:
            return f"not tuned: lr {lr:g} has no {tuning.choose_by}, which not every device told"
    return "not tuned yet"


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else nan
