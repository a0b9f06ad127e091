"""`fedlora verify`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.errors import ConfigError, MissingExtraError, printable
from fedlora.identity.audit import audited, is_run
from fedlora.nearest import check_there


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--allow-unnamed-base", is_flag=True, help="Take adapter files of other tools, which name no base, where they fit."
)
@click.option(
    "--key", "key", type=click.Path(path_type=Path), metavar="FILE",
    help="Of a run: the public key of its server, as fleet/identity/server.pub.",
)  # fmt: skip
def verify(directory: Path, allow_unnamed_base: bool, key: Path | None) -> None:
    """Check every file of DIRECTORY, an exported base, or a run, and tell who made what.

    Of an exported base: digests, graphs, adapters, and that nothing else lies there; nothing in it is run. Of a run: that
    each round follows the one before and is as it was committed, and who signed it and what the devices gave to it.
    """
    check_there(directory)
    if is_run(directory):
        from fedlora.identity.keys import PublicKey

        for line in audited(directory, PublicKey.read(key) if key else None):
            click.echo(printable(line))
        return
    if key is not None:
        raise ConfigError(f"{directory}: --key is for a run, which this is not; leave it out")
    try:  # here: a run is verified where nothing is installed that reads a graph
        from fedlora_export.checks.verify import verify_folder
    except ImportError as error:
        raise MissingExtraError(
            f"an exported base needs the extra 'export': pip install 'fedlora[export]' ({error})"
        ) from None

    for line in verify_folder(directory, allow_unnamed_base=allow_unnamed_base):
        click.echo(line)
