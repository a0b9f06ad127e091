"""`fedlora report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from fedlora.commands.needed import needed
from fedlora.counted import counted
from fedlora.errors import ConfigError
from fedlora.nearest import check_there, hint
from fedlora.terminal import Terminal, warning

if TYPE_CHECKING:
    from fedlora_simulations.reports.groups import Panel

needed("jinja2", "matplotlib")
_FIGURES, _TABLES = ("svg", "pdf", "csv"), ("latex", "csv")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER|FILE.html",
    help="A folder for the page and what is asked for besides, or the page alone.  [default: report.html in the only RUN]",
)  # fmt: skip
@click.option("--figures", default="", metavar="KIND,...", help="Write each picture too: svg, pdf, csv.")
@click.option("--tables", default="", metavar="KIND,...", help="Write each table too: latex, csv.")
@click.option(
    "--against", default="", metavar="NAME", help="The group that others are compared with.  [default: the first]"
)
@click.option(
    "--level", "levels", multiple=True, metavar="NAME=LOSS",
    help="A loss measured elsewhere, such as that of full fine-tuning: a row of the table.",
)  # fmt: skip
@click.option("--title", default="", help="What the page is called.  [default: the names of the runs]")
def report(
    runs: tuple[Path, ...],
    output: Path | None,
    figures: str,
    tables: str,
    against: str,
    levels: tuple[str, ...],
    title: str,
) -> None:
    """Make a page of RUNS, directories of runs and studies: one run, or several compared.

    Runs of one configuration with several seeds are one group: means, bands, and differences paired by seed.
    """
    wanted_figures, wanted_tables = _kinds(figures, _FIGURES, "--figures"), _kinds(tables, _TABLES, "--tables")
    for run in runs:
        check_there(run)
    output = output or _default(runs)
    is_file = output.suffix.lower() in (".html", ".htm")
    if is_file and (wanted_figures or wanted_tables):
        raise ConfigError(f"-o {output}: a page alone has no room for files of {figures or tables}; name a folder")
    if not is_file and output.is_file():
        raise ConfigError(f"-o {output}: a file lies there; name a folder, or a file that ends in .html")
    full = dict(map(_level, levels))
    # Here, because it takes matplotlib a second to load: what is wrong with the words has been told.
    from fedlora_simulations.reports.contents import report_of
    from fedlora_simulations.reports.output import PAGE, write_folder, write_page

    made = report_of(_panels(runs), title=title, against=against, full=full)
    errors = Terminal(stderr=True)
    for notice in made.notices:
        errors.print(warning(notice), soft_wrap=True)
    if is_file:
        click.echo(write_page(made, output))
        return
    written = write_folder(made, output, figures=wanted_figures, tables=wanted_tables)
    click.echo(output / PAGE)
    if len(written) > 1:
        folders = sorted({str(output / path.relative_to(output).parts[0]) for path in written[1:]})
        click.echo(f"{counted(len(written) - 1, 'file')} in {' and '.join(folders)}")


def _panels(paths: Sequence[Path]) -> list[Panel]:
    """One of all runs, and those of each study."""
    from fedlora_simulations.reports.groups import check_groups, grouped
    from fedlora_simulations.reports.run import read_run
    from fedlora_simulations.study.panels import is_study, study_panels, with_names

    once = list({path.resolve(): path for path in paths}.values())
    runs = [read_run(path) for path in once if not is_study(path)]
    studies = with_names([panel for path in once if is_study(path) for panel in study_panels(path)])
    panels = [*([grouped(runs)] if runs else []), *studies]
    check_groups(sum(len(panel.groups) for panel in panels))
    return panels


def _default(runs: Sequence[Path]) -> Path:
    if len(runs) > 1:
        raise ConfigError(
            "-o is missing; of several runs, name a folder or a file for their report, such as -o report.html"
        )
    return runs[0] / "report.html"


def _kinds(text: str, known: Sequence[str], option: str) -> list[str]:
    kinds = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for kind in kinds:
        if kind not in known:
            near = hint(kind, known, f"known kinds: {', '.join(known)}")
            raise ConfigError(f"{option} {kind}: {near}; expected kinds of files, with commas between them")
    return kinds


def _level(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        loss = float(number)
    except ValueError:
        loss = math.nan
    if not name.strip() or not math.isfinite(loss):
        raise ConfigError(f"--level {text}: expected NAME=LOSS, such as 'full fine-tuning=2.31'")
    return name.strip(), loss
