"""With what a simulation was computed: RUN/environment.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedlora.counted import counted
from fedlora.errors import RunError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.threads import cores
from fedlora.version import __version__
from fedlora_client.ops.processor import processor

FILE = "environment.json"
_PACKAGES = ("torch", "numpy", "flwr", "tokenizers")


def environment() -> dict[str, str]:
    """{what: its version or name} of this process."""
    found = {"fedlora": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor()}, {counted(cores(), 'core')}",
    }


def write_environment(run: Path) -> None:
    """Write that of this process into the directory of a run."""
    write_text(run / FILE, json.dumps(environment(), indent=1) + "\n")


def read_environment(run: Path) -> Mapping[str, str]:
    """What `write_environment` wrote; nothing in a run of an earlier version. Raises RunError for anything else."""
    path = run / FILE
    if not path.exists():
        return {}
    content = read_object(path, RunError, "what a run was computed with")
    if not all(isinstance(value, str) for value in content.values()):
        raise RunError(f"{path}: expected names and versions, got {content!r:.60}; remove the file, or copy it again")
    return content
