"""`fedlora partition`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.config.run import changed, read_scenario
from fedlora.counted import counted
from fedlora.files.atomic import write_text
from fedlora.terminal import Terminal


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the picture there too, an SVG.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. data.partition.alpha=1."
)
def partition(scenario: Path, output: Path | None, changes: tuple[str, ...]) -> None:
    """Show who has how much of what in SCENARIO, before anything trains."""
    from fedlora_simulations.checks import check_devices
    from fedlora_simulations.partition import partition_of, partition_tables

    config = changed(read_scenario(scenario), changes)
    check_devices(config)
    found = partition_of(config)
    console = Terminal()
    for table in partition_tables(found, console.width):
        console.print(table, "")
    if found.test:
        console.print(f"test set: {counted(found.test, 'example')}, which all devices measure together")
    if output:
        from fedlora_simulations.reports.drawing import WIDE, svg
        from fedlora_simulations.reports.figures import partition_chart

        write_text(output, svg(partition_chart(found), WIDE))
        click.echo(output)
