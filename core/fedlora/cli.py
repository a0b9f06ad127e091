"""The command `fedlora`: its subcommands come from the entry-point group `fedlora.commands`, one set per role."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points

import click

from fedlora.errors import FedloraError
from fedlora.threads import any_left_behind
from fedlora.version import __version__

GROUP = "fedlora.commands"
# The extra that a role's package belongs to; an import that fails names it.
_EXTRAS = {
    "fedlora_client": "client",
    "fedlora_server": "server",
    "fedlora_export": "export",
    "fedlora_serve": "serve",
    "fedlora_simulations": "simulate",
}


class RoleCommands(click.Group):
    """A group that imports the subcommand that runs, and no other (--help asks each for its summary)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        point = _points().get(cmd_name)
        if point is None:
            return None
        try:
            command = point.load()
        except (ImportError, AttributeError) as error:  # the latter: installed before a command moved
            return _unavailable(point, error)
        assert isinstance(command, click.Command)
        return command


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _unavailable(point: EntryPoint, error: Exception) -> click.Command:
    extra = _EXTRAS.get(point.value.split(".")[0], "all")
    hint = f"needs the extra '{extra}': pip install 'fedlora[{extra}]'"

    def fail() -> None:
        raise click.ClickException(f"fedlora {point.name} {hint} ({error})")

    return click.Command(
        point.name,
        callback=fail,
        help=f"({hint})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=RoleCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedlora")
def commands() -> None:
    """Federated LoRA: train adapters where the data lives, aggregate them, serve them on ONNX Runtime."""


def main() -> None:
    """Run the command line; an error of ours is one line on standard error and exit code 1."""
    try:
        code = commands(prog_name="fedlora")
    except SystemExit as ended:
        code = ended.code
    except FedloraError as error:
        click.echo(f"error: {error}", err=True)
        code = 1
    except OSError as error:  # a full disk, a folder without permission: not ours, and no reason for a traceback
        click.echo(f"error: {error.filename or 'the system says'}: {error.strerror or error}", err=True)
        code = 1
    if any_left_behind():  # in the middle of a product: they would hold up an orderly end, or crash in it
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)
