"""What did not run of a study, and why."""

from __future__ import annotations

from collections.abc import Sequence

from fedlora.counted import counted
from fedlora.errors import RunError

from fedlora_simulations.study.definition import Study
from fedlora_simulations.study.plan import all_runs
from fedlora_simulations.study.results import Result, Results


def failures(study: Study, results: Results) -> list[Result]:
    """The runs of the study that failed, in its order."""
    found = [results.get(run.digest) for run in all_runs(study, results)]
    return [result for result in found if result and result.failure]


def told(failed: Sequence[Result]) -> list[str]:
    """A line for each reason, with the runs that it ended."""
    by_reason: dict[str, list[Result]] = {}
    for result in failed:
        by_reason.setdefault(result.failure, []).append(result)
    return [f"{counted(len(runs), 'run')} failed: {reason} ({_shown(runs)})" for reason, runs in by_reason.items()]


def check_any(study: Study, results: Results) -> None:
    """Raise RunError, with every reason, where runs of the study failed and no method's gave a number."""
    failed = failures(study, results)
    if failed and not any(results.done(run.digest) for run in all_runs(study, results) if not run.is_pooled):
        raise RunError(f"{results.path}: no method gave a number, so there is no table; " + "; ".join(told(failed)))


def _shown(runs: Sequence[Result], most: int = 3) -> str:
    names = [f"{run.row}, {run.setting}, seed {run.seed}, lr {run.lr:g}" for run in runs[:most]]
    return "; ".join([*names, *([f"and {len(runs) - most} more"] if len(runs) > most else [])])
