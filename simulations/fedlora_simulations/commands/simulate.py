"""`fedlora simulate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import click
from fedlora.config.run import changed, read_scenario
from fedlora.terminal import Terminal

from fedlora_simulations.checks import check_simulation, with_output
from fedlora_simulations.commands.stopped import stopped


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(["in-process", "flower"]), default="in-process", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run's directory.  [default: runs/NAME-TIME]")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Devices at a time.  [default: the scenario's, or all cores]"
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. server.method=fedavg.")
def simulate(scenario: Path, engine: str, output: Path | None, workers: int | None, changes: tuple[str, ...]) -> None:
    """Run SCENARIO, a TOML file, and write metrics, adapters and report.html into the run's directory."""
    config = changed(read_scenario(scenario), changes)
    if output:
        config = dataclasses.replace(config, output=str(output.absolute()))
    check_simulation(config)
    # Here, because it takes torch seconds to load: what is wrong with the file has been told.
    from fedlora_simulations.report import REPORT
    from fedlora_simulations.simulation import Engine, rounds_table, run_checked

    config, console = with_output(config), Terminal(stderr=True)
    try:
        run = run_checked(config, cast(Engine, engine), workers, console)
    except KeyboardInterrupt:
        raise stopped(Path(config.output)) from None
    console.print(rounds_table(run))
    click.echo(run / REPORT)
