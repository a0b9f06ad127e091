"""The subcommands of the client: one module each."""
