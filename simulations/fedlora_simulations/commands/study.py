"""`fedlora study`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.threads import cores
from rich.console import Console

from fedlora_simulations.study.file import read_study
from fedlora_simulations.study.plot import write_plot
from fedlora_simulations.study.results import Results
from fedlora_simulations.study.runs import run_study
from fedlora_simulations.study.table import console_tables, write_table


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The study's directory.")
@click.option("--long", is_flag=True, help="The version that the file's table [long] describes.")
@click.option("--table", is_flag=True, help="Run nothing; show what there is.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=cores, show_default="all cores", help="Devices at a time."
)
def study(file: Path, output: Path, long: bool, table: bool, workers: int) -> None:
    """Compare aggregation methods: run what is missing of the study FILE, and write its table.

    What ran stands in DIR/results.jsonl, a line per run: a study that was stopped goes on where it was.
    """
    plan, results = read_study(file, long=long), Results(output)
    if not table:
        run_study(plan, results, workers, Console(stderr=True))
    console = Console()
    if not console.is_terminal:  # a file has room for whole lines
        console.width = max(console.width, 120)
    for each in console_tables(plan, results):
        console.print(each)
    write_plot(plan, results, output)
    click.echo(write_table(plan, results, output))
