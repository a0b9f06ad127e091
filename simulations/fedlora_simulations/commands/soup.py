"""`fedlora soup`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click
from fedlora.combine.ways import Way
from fedlora.errors import ConfigError
from fedlora.nearest import check_there
from fedlora.terminal import Terminal


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PEFT directory that is made.")
@click.option("--greedy", is_flag=True, help="Keep only what makes the held-out loss no worse.")
@click.option("--rounds", default="", metavar="N-N,...", help="Committed rounds to take.  [default: all]")
@click.option("--devices", is_flag=True, help="Take what each device kept of the last round, not the rounds.")
@click.option(
    "--how", type=click.Choice(["svd", "cat"]),
    help="cat is the mean exactly, and adds ranks; svd the best of one rank.  [default: svd, where there are products]",
)  # fmt: skip
@click.option("--svd-rank", type=click.IntRange(min=1), help="Of svd.  [default: the largest of the run's]")
@click.option("--data", default="", metavar="PATH", help="Measure on this file's held-out part, not the devices'.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Devices at a time.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def soup(
    run: Path, output: Path, greedy: bool, rounds: str, devices: bool, how: str | None, svd_rank: int | None, data: str,
    workers: int, force: bool,
) -> None:  # fmt: skip
    """Make one adapter of many that RUN made: their mean, measured on held-out data."""
    check_there(run)
    if data:
        check_there(data)
    if svd_rank and how == "cat":
        raise ConfigError("--svd-rank: cat cuts no rank; leave it out, or take --how svd")
    from fedlora_simulations.soup import SoupOrder, make_soup  # here: `fedlora --help` needs no torch

    console = Terminal(stderr=True)
    order = SoupOrder(
        run=run, greedy=greedy, rounds=rounds, devices=devices, how=cast("Way | None", how), svd_rank=svd_rank, data=data,
        workers=workers,
    )  # fmt: skip
    made = make_soup(order, output, replace=force, tell=lambda line: console.print(line, soft_wrap=True))
    best = min(made.alone, key=made.alone.__getitem__)
    last = list(made.alone)[-1]
    beside = "" if last == best else f", {last} {made.alone[last]:.4f}"
    console.print(
        f"{len(made.taken)} of {len(made.alone)} taken: {', '.join(made.taken)}; held-out loss {made.loss:.4f}; the best "
        f"alone ({best}) {made.alone[best]:.4f}{beside}, the base {made.base:.4f}",
        soft_wrap=True,
    )
    if made.test:
        console.print(
            "test set: " + ", ".join(f"{name} {loss:.4f}" for name, loss in made.test.items()), soft_wrap=True
        )
    elif greedy:
        console.print("chosen and measured on the same data: on other data it may do less well", soft_wrap=True)
    click.echo(output)
