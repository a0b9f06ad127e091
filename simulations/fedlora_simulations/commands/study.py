"""`fedlora study`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from fedlora.counted import counted
from fedlora.errors import ConfigError, RunError
from fedlora.terminal import Terminal, warning
from fedlora.threads import cores

from fedlora_simulations.study.checks import check_study
from fedlora_simulations.study.failures import check_any, failures, told
from fedlora_simulations.study.file import read_study
from fedlora_simulations.study.plan import all_runs, as_it_began
from fedlora_simulations.study.results import Results


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

    What ran stands in DIR/results.jsonl, a line per run: a study that was stopped goes on where it was. A run that failed
    is told; where all did, there is no table.
    """
    results = Results(output)
    plan = as_it_began(read_study(file, long=long), results)
    errors = Terminal(stderr=True)
    if not table:
        check_study(plan, results)
        # Here, because it takes torch seconds to load: what is wrong with the file has been told.
        from fedlora_simulations.study.runs import run_checked_study

        try:
            run_checked_study(plan, results, workers, errors)
        except KeyboardInterrupt:
            runs = all_runs(plan, results)
            done = sum(results.done(run.digest) is not None for run in runs)
            again = f"fedlora study {shlex.quote(str(file))} -o {shlex.quote(str(output))}{' --long' if long else ''}"
            raise RunError(f"stopped; kept: {done} of {counted(len(runs), 'run')}. To go on: {again}") from None
    elif not any(results.get(run.digest) for run in all_runs(plan, results)):
        raise ConfigError(f"{output} holds no result of {file}: leave --table out to run it")
    check_any(plan, results)
    for line in told(failures(plan, results)):
        errors.print(warning(line), soft_wrap=True)
    from fedlora_simulations.study.plot import write_plot
    from fedlora_simulations.study.table import console_tables, write_table

    console = Terminal()
    if not console.is_terminal:  # a file has room for whole lines
        console.width = max(console.width, 120)
    for each in console_tables(plan, results, console.width):
        console.print(each, "")
    write_plot(plan, results, output)
    click.echo(write_table(plan, results, output))
