"""What a step has to read, and how fast this machine reads: the least time that a step can take.

`python -m harness.bandwidth THREADS BYTES` prints bytes per second as JSON: a decode step reads every weight once, so it
takes at least their bytes over this. It is the fastest of some sums of an array as large, or as 256 MB, which no cache
holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

from fedlora.base.pack import BasePack

from harness.process import module_command, module_environment

_LEAST_BYTES, _REPEATS = 1 << 28, 15


def main() -> None:
    import torch  # here: whoever asks for the figure does without

    threads, size_bytes = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    array = torch.ones(max(size_bytes, _LEAST_BYTES) // 4)
    array.sum()
    clock = time.process_time if threads == 1 else time.perf_counter  # as the steps are timed
    taken = []
    for _ in range(_REPEATS):
        started = clock()
        array.sum()
        taken.append(clock() - started)
    print(json.dumps({"bytes_per_s": array.numel() * 4 / min(taken)}))


def bytes_per_step(pack: BasePack, ranks: Sequence[int]) -> int:
    """Bytes that one step reads at least: the linear weights, the head, and float32 factors of an adapter of each rank."""
    head = list(pack.shape.vocabulary_modules())[-1]
    modules = pack.shape.linear_modules()
    entries = pack.weights.entries
    stored = [name for module in (*modules, head) for name in entries if name.rsplit(".", 1)[0] == module]
    adapters = sum(4 * rank * (o + i) for rank in ranks for o, i in modules.values())
    return sum(entries[name].size_bytes for name in stored) + adapters


def read_bandwidth(threads: int, size_bytes: int) -> float:
    """Bytes per second, measured in a process of its own."""
    command = module_command(sys.executable, "harness.bandwidth", threads, size_bytes)
    done = subprocess.run(command, env=module_environment(), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["bytes_per_s"])


if __name__ == "__main__":
    main()
