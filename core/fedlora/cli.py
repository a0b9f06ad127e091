"""The command `fedlora`: its subcommands come from the entry-point group `fedlora.commands`, one set per role.

`completion` is the command line's own.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points

import click
from click.shell_completion import CompletionItem

from fedlora.commands.completion import completion
from fedlora.errors import FedloraError
from fedlora.nearest import hint
from fedlora.threads import any_left_behind
from fedlora.version import __version__

GROUP = "fedlora.commands"
_WHOLE = 10_000  # characters of a summary: click would cut it off at the end of its line
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
        return sorted({*_points(), *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        point = _points().get(cmd_name)
        if point is None:
            return super().get_command(ctx, cmd_name)
        try:
            command = point.load()
        except (ImportError, AttributeError) as error:  # the latter: installed before a command moved
            return _unavailable(point, error)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}; {hint(name, known, 'fedlora --help lists them', most=2)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with the whole first sentence of each, however many lines it takes."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(_WHOLE)) for name, each in found if each and not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and options; a shell asks at every key, and no command is imported for it."""
        names = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


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


commands.add_command(completion)


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
