"""`fedlora completion`: what a shell needs to complete commands, options and files."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

# click's own: those that it finds by name are typer's in a process that has loaded Flower's commands.
_SCRIPTS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
VARIABLE = "_FEDLORA_COMPLETE"  # by which click knows that a shell asks
_PLACES = {
    "bash": "fedlora completion bash > ~/.local/share/bash-completion/completions/fedlora",
    "zsh": "fedlora completion zsh > ~/.zfunc/_fedlora   (with fpath+=~/.zfunc before compinit in ~/.zshrc)",
    "fish": "fedlora completion fish > ~/.config/fish/completions/fedlora.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_PLACES)), required=False)
@click.pass_context
def completion(context: click.Context, shell: str | None) -> None:
    """Print the script that completes fedlora's commands in SHELL: bash, zsh or fish (the one of $SHELL unless told).

    \b
    Put it where the shell looks, and open another one:
      bash  fedlora completion bash > ~/.local/share/bash-completion/completions/fedlora
      zsh   fedlora completion zsh > ~/.zfunc/_fedlora
            and in ~/.zshrc, before compinit: fpath+=~/.zfunc
      fish  fedlora completion fish > ~/.config/fish/completions/fedlora.fish
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    found = _SCRIPTS.get(name)
    if found is None:
        raise click.UsageError(f"$SHELL is {name or 'not set'!r}; name one of {', '.join(_PLACES)}")
    script = found(context.find_root().command, {}, "fedlora", VARIABLE).source()
    click.echo(f"{script.strip()}\n\n# To have it in every shell: {_PLACES[name]}")
