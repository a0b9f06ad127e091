"""The Flower ServerApp."""

from __future__ import annotations

import logging
from pathlib import Path

from fedlora.base.pack import open_pack
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora_server.fleet.enrolled_grid import EnrolledGrid
from fedlora_server.fleet.identity import read_signer
from fedlora_server.fleet.roll import MARK, roll_of_environment
from fedlora_server.fleet.signed_grid import Head, SignedGrid
from fedlora_server.rounds import Rounds
from fedlora_server.run.run_directory import as_it_began, default_output, open_run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration describes, or, with `server.resume`, those that are left of them."""
    roll = roll_of_environment()
    log = logging.getLogger("fedlora")
    if not log.handlers:  # Flower shows what its ServerApp process prints
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(("" if roll is None else MARK) + "%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    config = RunConfig.from_flat(context.run_config, "run configuration")
    run = f"{context.run_id:016x}"
    if config.server.resume and not config.output:
        raise ConfigError(
            "server.resume is true and output is empty; set output to the directory of the run that goes on"
        )
    base = open_pack(config.base)
    output = Path(config.output) if config.output else default_output(config.name, run)
    if config.server.resume:
        config = as_it_began(config, output)
    config = config.settled(base)
    signer = None if roll is None else read_signer(roll.folder)
    fleet = None if roll is None else EnrolledGrid(grid, roll) if signer is None else SignedGrid(grid, roll, signer)
    rounds = Rounds(fleet or grid, config, base, roll)
    with open_run(output, config, base, run, signer) as directory:
        if isinstance(fleet, SignedGrid):
            fleet.begin(
                directory.run, base.fingerprint, context.run_config, lambda: Head(directory.last_round, directory.head)
            )
        rounds.run(directory)
