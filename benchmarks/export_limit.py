"""How fast can this machine read? argv is the number of threads and of bytes. Prints bytes per second as JSON.

A decode step reads every weight once, so it takes at least their bytes over this: the fastest of some sums of an array as
large, or as 256 MB, which no cache holds.
"""

from __future__ import annotations

import json
import sys
import time

import torch

_LEAST_BYTES, _REPEATS = 1 << 28, 15


def main() -> None:
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


if __name__ == "__main__":
    main()
