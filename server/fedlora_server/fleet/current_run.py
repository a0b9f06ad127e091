"""run.json: the run that a fleet's server has under way, so that a server that was killed goes on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedlora.config.run import RunConfig, Scalar
from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object

from fedlora_server.run.resume import check_goes_on
from fedlora_server.run.run_directory import CONFIG, as_it_began, read_config

RUNNING, COMPLETED, FAILED = "running", "completed", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRun:
    """The last run of a fleet, and how far it is."""

    output: str  # its directory
    config: dict[str, Scalar]  # flat, without output and server.resume
    flower_run: int = 0  # as Flower numbers it; 0 before it was started
    state: str = RUNNING
    changes: list[str] = field(default_factory=list)  # KEY=VALUE, by which it differs from server.toml


def new_run(folder: Path, config: RunConfig, now: datetime, changes: Sequence[str] = ()) -> CurrentRun:
    """A run that is to begin, in a directory of its own below the fleet's."""
    name = f"{config.name}-{now:%Y%m%d-%H%M%S}"
    output, number = folder / "runs" / name, 1
    while output.exists():
        number += 1
        output = folder / "runs" / f"{name}-{number}"
    return CurrentRun(output=str(output), config=_flat(config), changes=list(changes))


def has_begun(current: CurrentRun) -> bool:
    """Whether its server wrote anything of it."""
    return (Path(current.output) / CONFIG).is_file()


def with_config(current: CurrentRun, config: RunConfig, changes: Sequence[str] = ()) -> CurrentRun:
    """A run that goes on under `config`. Raises ConfigError where it would become another run."""
    output = Path(current.output)
    if has_begun(current):
        try:
            check_goes_on(read_config(output), as_it_began(config, output), output)
        except ConfigError as error:
            raise ConfigError(f"{error}; or pass --new to leave that run and begin another") from None
    return replace(current, config=_flat(config), changes=list(changes))


def read_current(path: Path) -> CurrentRun | None:
    """The run in a run.json; None where there is none yet. Raises ConfigError for another content."""
    if not path.exists():
        return None
    content: dict[str, Any] = read_object(path, ConfigError, "the run of a fleet")
    kinds = {"output": str, "config": dict, "flower_run": int, "state": str, "changes": list}
    content = {"changes": []} | content
    if content.keys() != {each.name for each in fields(CurrentRun)} or any(
        type(content[key]) is not kind for key, kind in kinds.items()
    ):
        raise ConfigError(f"{path}: expected the run of a fleet; remove the file to begin a new run")
    return CurrentRun(**content)


def write_current(path: Path, run: CurrentRun) -> None:
    write_text(path, json.dumps(asdict(run), indent=2) + "\n")


def _flat(config: RunConfig) -> dict[str, Scalar]:
    own = ("output", "server.resume")
    return {k: v for k, v in config.flat().items() if k not in own and not k.startswith("simulation.")}
