"""What is wrong with the runs of a study, told before the first of them, and before torch is there."""

from __future__ import annotations

from fedlora_simulations.checks import check_devices, check_parts, check_ranks
from fedlora_simulations.study.definition import Study
from fedlora_simulations.study.plan import all_runs
from fedlora_simulations.study.results import Results


def check_study(study: Study, results: Results) -> None:
    """Raise FedloraError for a run that could not begin: what `check_simulation` raises, once for each kind of run."""
    runs = all_runs(study, results)
    for run in {(run.row, run.setting): run for run in runs}.values():
        check_parts(run.located())
        check_ranks(run.located())
    for run in {run.setting: run for run in runs}.values():
        check_devices(run.located())
