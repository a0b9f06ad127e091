"""Run a scenario from its configuration to its report."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fedlora.base.pack import open_pack
from fedlora.config.run import RunConfig
from fedlora.counted import counted, ranges
from fedlora.terminal import Terminal
from fedlora.threads import cores
from fedlora_client.ops.compute import choose_compute
from fedlora_client.ops.native_ops import NativeOps
from fedlora_server.aggregation.aggregation import Aggregation
from fedlora_server.run.loss_over_devices import loss_over_devices
from fedlora_server.run.run_directory import CONFIG, devices_to_measure, loss_unit, read_metrics
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress
from rich.table import Table

from fedlora_simulations.checks import check_simulation, with_output
from fedlora_simulations.device_accounts import data_accounts, tell_data
from fedlora_simulations.engines import run_in_process, run_on_flower
from fedlora_simulations.narrow import narrow_table
from fedlora_simulations.partition import FILE as PARTITION
from fedlora_simulations.partition import partition_of
from fedlora_simulations.progress import RunProgress, showing
from fedlora_simulations.report import write_report
from fedlora_simulations.reports.environment import FILE as ENVIRONMENT
from fedlora_simulations.reports.environment import write_environment

Engine = Literal["in-process", "flower"]
_ACCURACY = {
    "scores": "right",
    "test": "right of test",
}  # headings: the share of the held-out texts, and of the test set


def simulate(
    config: RunConfig, engine: Engine = "in-process", workers: int | None = None, console: Console | None = None
) -> Path:
    """Run `config`, or go on with it where it says `server.resume`; write the report; return the run's directory.

    `workers` devices work at a time, as many as `config` says unless told; the run's configuration keeps it.
    Progress goes to `console`, standard error unless told.
    Raises FedloraError.
    """
    check_simulation(config)
    return run_checked(with_output(config), engine, workers, console or Terminal(stderr=True))


def run_checked(config: RunConfig, engine: Engine, workers: int | None, console: Console) -> Path:
    """`simulate` for a configuration with an output that `check_simulation` has seen."""
    workers = workers or config.simulation.workers or cores()
    config = dataclasses.replace(config, simulation=dataclasses.replace(config.simulation, workers=workers))
    config = settled(config)
    Aggregation(config, config.first_adapter(open_pack(config.base)))  # refuses what does not go together
    tell_data(data_accounts(config), console)
    run = Path(config.output)
    with _kept_once_begun(run):
        partition_of(config).write(run)  # before the first round: a run that is stopped has them too
        write_environment(run)
        if engine == "flower":
            run_on_flower(config, workers=workers)
        else:
            with showing(console) as progress, warnings_above(progress):
                bars = RunProgress(progress, config.server.rounds)
                run_in_process(config, workers=workers, on_push=bars.pushed, on_done=bars.done)
    write_report(run)
    return run


@contextmanager
def _kept_once_begun(run: Path) -> Iterator[None]:
    """Of a run that ends before its server has begun it, nothing is left."""
    try:
        yield
    except BaseException:
        if not (run / CONFIG).is_file():
            for name in (PARTITION, ENVIRONMENT):
                (run / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else lies there
                run.rmdir()
        raise


def settled(config: RunConfig) -> RunConfig:
    """What the devices would each choose for this machine, chosen once: the run's configuration then tells it."""
    train = config.train
    compute = choose_compute(train.compute, train.kernels, train.device)
    dtype = str(compute.dtype).removeprefix("torch.")
    kernels = "on" if isinstance(compute.ops, NativeOps) else "off"
    settled = dataclasses.replace(train, compute=dtype, kernels=kernels, device=str(compute.device))
    return dataclasses.replace(config, train=settled)


@contextmanager
def warnings_above(progress: Progress) -> Iterator[None]:
    """What the roles have to warn of goes above the bars, not through them."""
    handler = RichHandler(logging.WARNING, progress.console, show_path=False, show_time=False)
    logger = logging.getLogger("fedlora")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def rounds_table(run: Path | str) -> Table:
    """The rounds of a run, as its metrics tell them: in 80 columns, where nothing is folded or cut."""
    table = narrow_table(f"rounds: held-out loss over the devices, nats per {loss_unit(Path(run))}")
    records = read_metrics(run)
    scores = [name for name in ("scores", "test") if any("accuracy" in record.get(name, {}) for record in records)]
    # As wide as a terminal is at least: where there are scores, the spread and the two ways of bytes give them room.
    spread, traffic = ([], ["MB"]) if scores else (["spread"], ["MB down", "MB up"])
    right = [_ACCURACY[name] for name in scores]
    for heading in ("round", "answers", "mean", "worst tenth", *spread, *right, "error", *traffic, "s"):
        table.add_column(heading, justify="right")
    whole = devices_to_measure(records)
    for record in records:
        losses, error = record["loss"].values(), record["aggregation_error"]
        over = loss_over_devices(record["loss"], record["held_out_examples"])
        ways = (record["bytes_down"], record["bytes_up"])
        fewer = f"\n({len(losses)} of {whole})" if len(losses) < whole else ""
        table.add_row(
            str(record["round"]),
            f"{record['replies']} of {record['devices']}" if record["round"] else "base",
            f"{sum(losses) / len(losses):.4f}{fewer}" if losses else "",
            f"{over['worst_tenth']:.4f}" if over else "",
            *([f"{over['std']:.4f}" if over else ""] if spread else []),
            *(f"{record[name]['accuracy']:.1%}" if record.get(name) else "" for name in scores),
            "" if error is None else f"{error:.2%}",
            *(_short(count / 1e6, 2) for count in (ways if len(traffic) > 1 else [sum(ways)])),
            _short(record["seconds"], 1),
        )
    table.caption = "\n".join([*_excluded(records), *filter(None, [_never_trained(records)])]) or None
    return table


def _short(number: float, decimals: int) -> str:
    """With so many decimals, and fewer where the number is large."""
    return f"{number:.{max(0, decimals - (number >= 100) - (number >= 1000))}f}"


def _excluded(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why answers did not count: a line for each reason, with how many and in which rounds."""
    counts: Counter[str] = Counter()
    rounds: dict[str, list[int]] = {}
    for record in records:
        counts.update(record["excluded"])
        for reason in record["excluded"]:
            rounds.setdefault(reason, []).append(record["round"])
    return [
        f"not counted: {counts[reason]} {reason}, in {'round' if len(rounds[reason]) == 1 else 'rounds'} "
        f"{ranges(rounds[reason])}"
        for reason in sorted(counts)
    ]


def _never_trained(records: Sequence[Mapping[str, Any]]) -> str | None:
    """What the run did for the clients who never train, from the first measurement to the last; None without any."""
    measured = [record["never_trained"] for record in records if record["never_trained"]]
    if not measured:
        return None
    first, last = measured[0], measured[-1]
    told = [f"loss {first['mean']:.4f} to {last['mean']:.4f}", f"worst tenth {last['worst_tenth']:.4f}"]
    if "accuracy" in first and "accuracy" in last:
        told.append(f"right {first['accuracy']:.1%} to {last['accuracy']:.1%}")
    return f"{counted(round(last['measured']), 'client')} who never trained: {', '.join(told)}"
