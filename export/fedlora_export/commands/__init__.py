"""The subcommands of the exporter: one module each."""
