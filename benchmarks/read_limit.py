"""What a step has to read, and how fast this machine reads: the least time that a step can take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedlora.base.pack import BasePack


def bytes_per_step(pack: BasePack, ranks: Sequence[int]) -> int:
    """Bytes that one step reads at least: the linear weights, the head, and float32 factors of an adapter of each rank."""
    head = list(pack.shape.vocabulary_modules())[-1]
    modules = pack.shape.linear_modules()
    entries = pack.weights.entries
    stored = [name for module in (*modules, head) for name in entries if name.rsplit(".", 1)[0] == module]
    adapters = sum(4 * rank * (o + i) for rank in ranks for o, i in modules.values())
    return sum(entries[name].size_bytes for name in stored) + adapters


def read_bandwidth(threads: int, size_bytes: int) -> float:
    """Bytes per second; see export_limit.py, which measures it in a process of its own."""
    script = [sys.executable, str(Path(__file__).with_name("export_limit.py")), str(threads), str(size_bytes)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["bytes_per_s"])
