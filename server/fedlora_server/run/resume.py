"""Whether a configuration goes on with a run: only what changes none of its results may differ."""

from __future__ import annotations

from pathlib import Path

from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError

# `base` is a place: its fingerprint is what must be the same. `name` may not differ: devices know what they keep by it.
MAY_DIFFER = ("base", "output", "server.min_devices", "server.resume", "server.round_timeout_s", "simulation.workers")


def check_goes_on(began: RunConfig, now: RunConfig, run: Path) -> None:
    """Raise ConfigError, naming each key that differs with both values, unless `now` goes on with the run of `began`."""
    there, here = began.flat(), now.flat()
    differing = [key for key in there if key not in MAY_DIFFER and here[key] != there[key]]
    told = []
    for key in differing:
        why = ""
        if key == "server.rounds":
            if now.server.rounds > began.server.rounds and began.train.schedule == "constant":
                continue
            why = " (it may rise, not fall)"
            if began.train.schedule != "constant":
                why = f" (with train.schedule = {began.train.schedule} every round's learning rate depends on it)"
        told.append(f"{key} is {there[key]!r} there, {here[key]!r} here{why}")
    if told:
        raise ConfigError(
            f"{run} holds another run: {'; '.join(told)}; go on with the configuration in its config.json, or name "
            "another output"
        )
