"""`fedlora resume`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from fedlora.config.run import changed
from fedlora.counted import counted
from fedlora.nearest import check_there
from fedlora.terminal import Terminal
from fedlora_server.run.resume import check_goes_on
from fedlora_server.run.run_directory import last_round, read_config

from fedlora_simulations.checks import check_simulation
from fedlora_simulations.commands.stopped import stopped


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=1), help="Devices at a time.  [default: as many as before]")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key that may, e.g. server.rounds=9."
)
def resume(run: Path, workers: int | None, changes: tuple[str, ...]) -> None:
    """Go on with a simulation that was stopped, or with more rounds; RUN is its directory.

    It ends as one that was never stopped, with one worker to the bit. With several, answers arrive in any order, and sums
    differ in their last digits.
    """
    check_there(run)
    run = run.absolute()
    began = read_config(run)
    config = dataclasses.replace(changed(began, changes), output=str(run))
    check_goes_on(began, config, run)
    config = dataclasses.replace(config, server=dataclasses.replace(config.server, resume=True))
    check_simulation(config)
    # Here, because it takes torch seconds to load: what is wrong with the run has been told.
    from fedlora_simulations.report import REPORT
    from fedlora_simulations.simulation import rounds_table, run_checked

    console, done, rounds = Terminal(stderr=True), last_round(run), config.server.rounds
    state = f"goes on after round {done} of {rounds}" if done < rounds else f"has all of its {counted(rounds, 'round')}"
    console.print(f"{run} {state}", soft_wrap=True, highlight=False)
    try:
        run_checked(config, "in-process", workers, console)
    except KeyboardInterrupt:
        raise stopped(run) from None
    console.print(rounds_table(run))
    click.echo(run / REPORT)
