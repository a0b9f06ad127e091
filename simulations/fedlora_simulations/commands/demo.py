"""`fedlora demo`: eight devices tune one model together, and the result answers in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from fedlora.base.pack import open_pack
from fedlora.config.run import RunConfig, read_scenario
from fedlora.counted import counted
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.terminal import Terminal
from fedlora.threads import cores
from fedlora_server.run.run_directory import RunDirectory, loss_unit, read_metrics
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora_simulations.checks import check_simulation
from fedlora_simulations.commands.stopped import stopped

if TYPE_CHECKING:
    from fedlora_simulations.alone import AloneResult


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--prompt", default="def loads(", show_default=True)
@click.option("--max-tokens", default=64, show_default=True)
@click.option(
    "--workers", type=click.IntRange(min=1), default=cores, show_default="all cores", help="Devices at a time."
)
def demo(scenario: Path, prompt: str, max_tokens: int, workers: int) -> None:
    """Federate SCENARIO, train each device alone beside it, export, and answer one prompt three ways."""
    started, console = time.monotonic(), Terminal()
    config = read_scenario(scenario)
    config = dataclasses.replace(config, output=str(Path("runs", f"demo-{time.strftime('%Y%m%d-%H%M%S')}").absolute()))
    check_simulation(config)
    try:
        _demonstrate(config, prompt, max_tokens, workers, console)
    except KeyboardInterrupt:
        raise stopped(Path(config.output)) from None
    console.print(f"{time.monotonic() - started:.0f} s in all")


def _demonstrate(config: RunConfig, prompt: str, max_tokens: int, workers: int, console: Console) -> None:
    # Here, because it takes torch seconds to load: what is wrong with the file has been told.
    from fedlora_simulations.alone import train_alone
    from fedlora_simulations.progress import showing
    from fedlora_simulations.report import REPORT, write_report
    from fedlora_simulations.reports.baselines import write_alone
    from fedlora_simulations.simulation import rounds_table, run_checked

    console.print(
        f"{counted(config.simulation.devices, 'device')} tune one model together: {config.server.rounds} rounds of "
        f"{counted(config.train.steps, 'step')}, method {config.server.method}"
    )
    run = run_checked(config, "in-process", workers, console)
    console.print(rounds_table(run))
    with showing(console) as progress:
        task = progress.add_task("each device alone", total=config.simulation.devices)
        alone = list(train_alone(config, workers, lambda: progress.advance(task)))
    write_alone(run, {result.device: result.loss for result in alone})
    write_report(run)  # with what they reached alone
    rows = _losses(run, alone)
    console.print(_losses_table(rows, loss_unit(run)))
    console.print(_verdict(rows), soft_wrap=True, highlight=False)
    _answer(config, run, alone, prompt, max_tokens, console)
    console.print(f"report: {run / REPORT}", soft_wrap=True, highlight=False)


Losses = tuple[float, float, float]  # of the base, of the device alone, of the federated adapter


def _losses(run: Path, alone: list[AloneResult]) -> list[tuple[AloneResult, Losses]]:
    """The devices, those with the least text first; one that was not measured is left out."""
    records = read_metrics(run)
    base, federated = records[0]["loss"], records[-1]["loss"]
    by_size = sorted(alone, key=lambda result: result.train_bytes)
    return [
        (r, (base[r.device], r.loss, federated[r.device]))
        for r in by_size
        if r.device in base and r.device in federated
    ]


def _means(rows: list[tuple[AloneResult, Losses]]) -> Losses:
    base, alone, federated = (sum(column) / len(rows) for column in zip(*(losses for _, losses in rows), strict=True))
    return base, alone, federated


def _losses_table(rows: list[tuple[AloneResult, Losses]], unit: str) -> Table:
    """Held-out loss per device; the half with less text are those with little data."""
    table = Table(title=f"loss on held-out text, nats per {unit}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("device", "training text, kB", "base", "alone", "federated"):
        table.add_column(heading, justify="left" if heading == "device" else "right")

    def add(name: str, size_bytes: float, losses: Losses, *, end: bool = False) -> None:
        cells = [Text(f"{loss:.3f}", style="bold green" if loss == min(losses) else "") for loss in losses]
        table.add_row(name, f"{size_bytes / 1e3:.0f}", *cells, end_section=end)

    for number, (result, losses) in enumerate(rows):
        add(result.device, result.train_bytes, losses, end=number == len(rows) - 1)
    for name, group in (("mean, little data", rows[: len(rows) // 2]), ("mean, all", rows)):
        if group:
            add(name, sum(result.train_bytes for result, _ in group) / len(group), _means(group))
    return table


def _verdict(rows: list[tuple[AloneResult, Losses]]) -> str:
    """What the table says, in a sentence, whichever way it went."""
    better = sum(federated < base for _, (base, _, federated) in rows)
    _, alone, federated = _means(rows[: max(1, len(rows) // 2)])
    comparison = "beats" if federated < alone else "does NOT beat"
    return (
        f"The federated adapter beats the base on {better} of {counted(len(rows), 'device')}; where there is little "
        f"data it {comparison} training alone: {federated:.3f} against {alone:.3f} on average."
    )


def _answer(
    config: RunConfig, run: Path, alone: list[AloneResult], prompt: str, max_tokens: int, console: Console
) -> None:
    """Export the base and two adapters; one session answers the prompt with each."""
    from fedlora_export.adapter_export import write_onnx_adapter
    from fedlora_export.export import export_base
    from fedlora_serve.local.engine import Engine
    from fedlora_serve.local.generate import generate
    from fedlora_serve.text.sampling import Sampling

    base = open_pack(config.base)
    model = run / "model"
    (graph,) = export_base(base, model)
    if graph.exact:
        console.print(f"exported to ONNX; largest difference of logits from torch: {max(graph.exact.values()):.1e}")
    own = min(alone, key=lambda result: result.train_bytes)
    write_peft(run / "alone", PeftDirectory(adapter=own.adapter, base_fingerprint=base.fingerprint))
    federated = read_peft(RunDirectory.adapter_of(run, config.server.rounds)).adapter
    engine = Engine(model)
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    table.add_column("answer of")
    table.add_column(f"prompt: {prompt}")
    for name, file, adapter in (  # a device's name is its own word, and no file's
        ("the base", "", None),
        ("the federated adapter", "federated", federated),
        (f"{own.device} alone", "alone", own.adapter),
    ):
        loaded = None
        if adapter is not None:
            path = model / f"{file}.onnx_adapter"
            write_onnx_adapter(adapter, base.fingerprint, path)
            loaded = engine.load_adapter(path)
        pieces = generate(engine, prompt, Sampling(max_tokens=max_tokens), adapter=loaded)
        table.add_row(name, Text(prompt + "".join(pieces)))
    console.print(table)
