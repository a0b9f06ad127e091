"""Which run `fedlora server run` works on: the one that is under way, as it was begun, or a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedlora.base.pack import open_pack
from fedlora.config.rate import AUTO
from fedlora.config.run import RunConfig, changed

from fedlora_server.fleet.current_run import (
    COMPLETED,
    CurrentRun,
    has_begun,
    new_run,
    read_current,
    with_config,
    write_current,
)
from fedlora_server.fleet.settings import FleetSettings, placed

Tell = Callable[[str], None]


def chosen_run(settings: FleetSettings, changes: Sequence[str], tell: Tell, *, is_new: bool = False) -> CurrentRun:
    """The run to work on, written to run.json: `changes` (KEY=VALUE) come after those that it was begun with.

    Raises ConfigError where it would become another run, PackError for a base that is not there.
    """
    path = settings.at("run.json")
    before = None if is_new else read_current(path)
    if before is not None and before.state == COMPLETED:
        before = None
    if before is not None and before.changes:
        tell(f"the run was begun with {' '.join(f'--set {change}' for change in before.changes)}")
        changes = [*before.changes, *changes]
    config = changed(RunConfig.from_flat(settings.run, str(settings.at("server.toml"))), changes)
    config = replace(config, base=placed(config.base, Path.cwd()))
    if before is not None and config.train.lr == AUTO and has_begun(before):
        config = changed(config, [f"train.lr={before.config.get('train.lr', AUTO)}"], str(path))
    config = config.settled(open_pack(config.base))  # so that the devices, whatever their version, are told a number
    # A base that was named from here is found from anywhere.
    kept = [f"base={config.base}" if change.partition("=")[0] == "base" else change for change in changes]
    if before is not None:
        current = with_config(before, config, kept)
    else:
        current = new_run(settings.folder, config, datetime.now(UTC), kept)
    write_current(path, current)
    return current
