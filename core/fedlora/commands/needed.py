"""What a subcommand needs when it runs, asked for without loading it: `fedlora --help` reads every subcommand's module."""

from __future__ import annotations

from importlib.util import find_spec


def needed(*modules: str) -> None:
    """Raise ImportError, of which the command line makes a sentence with the extra to install, where one is not there."""
    for name in modules:
        if find_spec(name) is None:
            raise ImportError(f"there is no {name}")
