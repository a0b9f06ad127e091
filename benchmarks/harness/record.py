"""Keep what a benchmark found: a JSON line per run in build/benchmarks.jsonl, and the figures as the last line printed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
_PACKAGES = ("numpy", "torch", "flwr", "onnxruntime")


def record(benchmark: str, configuration: Mapping[str, object], figures: Mapping[str, float]) -> None:
    """Append the run with its commit, machine and versions, and print the figures as one JSON object."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_PROJECT, capture_output=True, text=True, check=False
    )
    line = {
        "benchmark": benchmark,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {package: version(package) for package in _PACKAGES},
        "configuration": dict(configuration),
        "figures": dict(figures),
    }
    path = _PROJECT / "build" / "benchmarks.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(figures))
