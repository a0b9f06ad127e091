"""The subcommands of serving: one module each."""
