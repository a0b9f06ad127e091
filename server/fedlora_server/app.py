"""The Flower ServerApp."""

from __future__ import annotations

import logging
from pathlib import Path

from fedlora.pack import open_pack
from fedlora.run_config import RunConfig
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora_server.rounds import Rounds
from fedlora_server.run_directory import RunDirectory, default_output

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration describes."""
    if not logging.getLogger("fedlora").handlers:  # Flower shows what its ServerApp process prints
        logging.basicConfig(format="%(message)s")
        logging.getLogger("fedlora").setLevel(logging.INFO)
    config = RunConfig.from_flat(context.run_config, "run configuration")
    run = f"{context.run_id:016x}"
    base = open_pack(config.base)
    output = Path(config.output) if config.output else default_output(config.name, run)
    Rounds(grid, config, base, run).run(RunDirectory(output, config))
