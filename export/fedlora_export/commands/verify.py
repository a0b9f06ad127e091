"""`fedlora verify`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.nearest import check_there

from fedlora_export.checks.verify import verify_folder


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--allow-unnamed-base", is_flag=True, help="Take adapter files of other tools, which name no base, where they fit."
)
def verify(directory: Path, allow_unnamed_base: bool) -> None:
    """Check every file of DIRECTORY, an exported base: digests, graphs, adapters, and that nothing else lies there.

    Nothing in it is run.
    """
    check_there(directory)
    for line in verify_folder(directory, allow_unnamed_base=allow_unnamed_base):
        click.echo(line)
