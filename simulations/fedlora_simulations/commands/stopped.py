"""What a person who stopped a run is told."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedlora.counted import counted
from fedlora.errors import RunError
from fedlora_server.run.run_directory import CONFIG, last_round


def stopped(run: Path) -> RunError:
    """How to go on with the run in a directory, in which all that is written is whole."""
    if not (run / CONFIG).is_file():
        return RunError("stopped before the run began: nothing is kept")
    done = last_round(run)
    kept = f"{counted(done, 'round')} of it {'is' if done == 1 else 'are'} kept"
    return RunError(f"stopped; {kept}. To go on: fedlora resume {shlex.quote(str(run))}")
