"""Subcommands of `fedlora` that need only the core."""
