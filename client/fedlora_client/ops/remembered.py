"""Which dtype a machine trains in, decided once: products are timed, and a busy machine times them otherwise each time.

The decision lies in the cache, in a file for each processor, version of torch and kernels; like a library there, it is
read only where nobody else could have written it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fedlora.native import BuildError, cache_folder, read_cached, write_cached

Speeds = Mapping[str, float]  # {dtype: GFLOP/s}


def file_of(processor: str, torch_version: str, kernels: str) -> str:
    """The name of the file for these."""
    key = hashlib.sha256(repr((processor, torch_version, kernels)).encode()).hexdigest()[:16]
    return f"compute-{key}.json"


def recall(file: str) -> Speeds | None:
    """The speeds that the decision was made by; None where there is none, or none that can be trusted."""
    try:
        text = read_cached(file)
        speeds = {str(name): float(speed) for name, speed in json.loads(text)["gflops"].items()} if text else {}
    except (BuildError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return speeds if speeds and all(0 < speed < 1e9 for speed in speeds.values()) else None


def remember(file: str, speeds: Speeds) -> None:
    """Keep them, where that can be."""
    try:
        write_cached(file, json.dumps({"gflops": dict(speeds)}) + "\n")
    except BuildError:
        return  # the next process decides anew


def place_of(file: str) -> Path | None:
    """Where the file lies, for a person; None where there is none."""
    try:
        path = cache_folder() / file
    except BuildError:
        return None
    return path if path.is_file() else None
