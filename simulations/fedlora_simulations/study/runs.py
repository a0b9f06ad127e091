"""Run what is missing of a study."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from fedlora.base.pack import open_pack
from fedlora.config.run import RunConfig
from fedlora.counted import counted
from fedlora.errors import FedloraError, RunError
from fedlora.family import EncoderShape
from fedlora.files.temporary import own_folder
from fedlora.threads import cores
from fedlora_client.ops.processor import processor
from fedlora_server.run.run_directory import read_metrics
from flwr.app import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedlora_simulations.device_accounts import DeviceAccount, data_accounts, tell_data, total_of
from fedlora_simulations.engines import run_in_process
from fedlora_simulations.progress import lines_of
from fedlora_simulations.simulation import settled, warnings_above
from fedlora_simulations.study.checks import check_study
from fedlora_simulations.study.decided import KEYS, decided, with_decided
from fedlora_simulations.study.definition import Run, Study
from fedlora_simulations.study.measures import measures_of
from fedlora_simulations.study.plan import all_runs, as_it_began, cell_runs, choose, tuning_runs
from fedlora_simulations.study.pooled import pooled_measures
from fedlora_simulations.study.results import Result, Results

log = logging.getLogger("fedlora.simulations")

Measure = Callable[[Run, int], Result]


def run_study(study: Study, results: Results, workers: int, console: Console) -> None:
    """Run what `results` lacks, the tuning first, and add it there. A run that failed before is tried once more.

    Raises FedloraError for a run that could not begin, before the first.
    """
    study = as_it_began(study, results)
    check_study(study, results)
    run_checked_study(study, results, workers, console)


def run_checked_study(study: Study, results: Results, workers: int, console: Console) -> None:
    """`run_study` for a study that `check_study` has seen."""
    told: list[list[DeviceAccount]] = []
    for run in {run.setting: run for run in all_runs(study, results)}.values():
        if not results.get(run.digest):
            accounts = data_accounts(run.located())
            if accounts not in told:  # settings often differ in other things
                tell_data(accounts, console, title=f"data, {run.setting}")
                told.append(accounts)
    progress = _showing(console)
    with progress, lines_of(progress), warnings_above(progress):
        StudyRunner(study, results, workers, progress).run()


class StudyRunner:
    """One call's pass over a study."""

    def __init__(
        self, study: Study, results: Results, workers: int, progress: Progress, measure: Measure | None = None
    ) -> None:
        self._study, self._results, self._workers, self._progress = study, results, workers, progress
        self._measure = measure or measured
        self._decided: dict[str, str] = {}
        self._task: TaskID = progress.add_task(study.name, now="", counts=False)

    def run(self) -> None:
        """The tuning, then the cells."""
        self._tell("")
        self._decided = decided(self._study, self._results)
        self._run_missing(tuning_runs(self._study))
        self._run_missing(cell_runs(self._study, choose(self._study, self._results)))
        self._tell("")

    def _run_missing(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if self._results.done(run.digest):
                continue
            config = run.config
            self._tell(f"{run.row}, {run.setting}, seed {config.seed}, lr {config.train.rate:g}")
            began = time.monotonic()
            try:
                result = self._measure(
                    dataclasses.replace(run, config=with_decided(config, self._decided)), self._workers
                )
            except FedloraError as error:
                result = failed(run, str(error))
            except Exception as error:  # a fault in one method is no reason to lose the others' night
                log.exception("%s, %s, seed %d failed", run.row, run.setting, config.seed)
                result = failed(run, repr(error))
            if result.failure:
                log.warning("%s, %s, seed %d failed: %s", run.row, run.setting, config.seed, result.failure)
            self._results.add(dataclasses.replace(result, seconds=time.monotonic() - began))

    def _tell(self, now: str) -> None:
        """The bar counts windows that are trained on, by which time goes; the text counts runs."""
        runs = all_runs(self._study, self._results)
        over = [run for run in runs if self._results.get(run.digest)]
        self._progress.update(
            self._task, total=sum(run.windows for run in runs), completed=sum(run.windows for run in over),
            description=f"{len(over)} of {counted(len(runs), 'run')}", now=now,
        )  # fmt: skip


def measured(run: Run, workers: int) -> Result:
    """Run it, and keep the numbers only. Raises FedloraError."""
    config = settled(run.located())
    total = total_of(data_accounts(config))
    unit = "text" if isinstance(open_pack(config.base).model, EncoderShape) else "token"
    result = dataclasses.replace(
        _result(run, config), loss_unit=unit, examples=total.train, cut_examples=total.cut,
        left_out_examples=total.left_out, held_out_examples=total.held_out,
    )  # fmt: skip
    if run.is_pooled:
        measures = pooled_measures(config, workers)
        return dataclasses.replace(result, loss=measures["loss"], measures=measures)
    asked, bytes_down = 0, 0

    def pushed(message: Message) -> None:
        nonlocal asked, bytes_down
        if message.metadata.message_type == "train":
            asked += 1
            bytes_down += len(message.content.array_records["update"]["update"].data)

    with own_folder("study") as folder:
        output = folder / "run"
        run_in_process(
            dataclasses.replace(config, output=str(output)),
            workers=workers,
            on_push=pushed,
            on_done=lambda message: None,
        )
        records = read_metrics(output)
    rounds, excluded = records[1:], Counter[str]()
    for record in rounds:
        excluded.update(record["excluded"])
    errors = [record["aggregation_error"] for record in rounds if record["aggregation_error"] is not None]
    return dataclasses.replace(
        result,
        base_loss=_mean_loss(records[0], config),
        loss=_mean_loss(last := records[-1], config),
        measures=measures_of(last["loss"], last["held_out_examples"], last["accuracy"], last["scores"]),
        bytes_down=bytes_down / asked,
        bytes_up=sum(record["bytes_up"] for record in rounds) / asked,
        aggregation_error=fmean(errors) if errors else None,
        server_s=fmean(record["server_s"] for record in rounds),
        excluded=dict(excluded),
    )


def failed(run: Run, reason: str) -> Result:
    return dataclasses.replace(_result(run, run.config), failure=reason or "no reason given")


def _result(run: Run, config: RunConfig) -> Result:
    flat: dict[str, Any] = dict(run.config.flat()) | {
        key: value for key, value in config.flat().items() if key in {f"train.{each}" for each in KEYS}
    }
    return Result(
        digest=run.digest, row=run.row, setting=run.setting, seed=config.seed, lr=config.train.rate, machine=_machine(),
        config=flat,
    )  # fmt: skip


def _mean_loss(record: dict[str, Any], config: RunConfig) -> float:
    """Unweighted, over all devices: a mean over some is another number. Raises RunError for it."""
    losses, devices = record["loss"].values(), config.simulation.devices
    devices -= len(config.data.partition.never_training(devices))
    if len(losses) < devices:
        raise RunError(
            f"round {record['round']}: {len(losses)} of {counted(devices, 'device')} were measured; a mean over all is "
            "expected"
        )
    return fmean(losses)


def _machine() -> str:
    return f"{processor()}, {counted(cores(), 'core')}"


def _showing(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn(), TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False), console=console, speed_estimate_period=900,
        disable=not console.is_terminal,
    )  # fmt: skip
