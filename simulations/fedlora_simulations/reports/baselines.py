"""What a run is held against and was measured beside it: RUN/baselines.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedlora.errors import RunError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object

FILE = "baselines.json"
_MAX_LOSS = 1e9


def write_alone(run: Path, losses: Mapping[str, float]) -> None:
    """Keep {device: held-out loss} of devices that each trained by themselves, as long as in all rounds together."""
    write_text(run / FILE, json.dumps({"alone": dict(losses)}, indent=1) + "\n")


def read_alone(run: Path) -> dict[str, float]:
    """What `write_alone` wrote; nothing where nobody measured it. Raises RunError for anything else."""
    path = run / FILE
    if not path.exists():
        return {}
    alone = read_object(path, RunError, "what devices reached by themselves").get("alone", {})
    sound = isinstance(alone, dict) and all(type(value) is float and abs(value) < _MAX_LOSS for value in alone.values())
    if not isinstance(alone, dict) or not sound:
        raise RunError(f"{path}: alone is {alone!r:.60}; expected a loss by device: remove the file, or copy it again")
    return {str(device): float(loss) for device, loss in alone.items()}
