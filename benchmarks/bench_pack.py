"""How much memory and time does packing take, and how large is the pack?

    python benchmarks/bench_pack.py

A checkpoint of the shape of SmolLM2-135M with random bf16 weights, in one file and in shards, packed in fresh processes.
Peak memory is the process's own beyond what it had after its imports. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fedlora.base.pack import WEIGHTS
from fedlora.family import decoder_shape

from harness.checkpoints import CONFIGS, make_checkpoint
from harness.record import record

REPEATS = 3
SHAPE = "135M"

# Runs in a process of its own: argv is source, output, bits.
_CHILD = """
import json, sys, time
from pathlib import Path
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
def peak_kb():  # ru_maxrss would begin at what the parent had when it forked
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak_kb()
started = time.perf_counter()
make_pack(sys.argv[1], Path(sys.argv[2]), Quantization(bits=int(sys.argv[3])))
peak = peak_kb()
print(json.dumps({"seconds": time.perf_counter() - started, "peak_mb": (peak - before) * 1024 / 1e6}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = CONFIGS[SHAPE]
        shape = decoder_shape(config, "benchmark")
        make_checkpoint(root / "one", config)
        make_checkpoint(root / "shards", config, shards=4)
        largest = 2 * max(math.prod(dims) for dims in (shape.linear_modules() | shape.vocabulary_modules()).values())
        figures: dict[str, float] = {"largest_tensor_mb": largest / 1e6}
        for source, bits in (("one", 4), ("one", 8), ("shards", 4)):
            runs = [_pack(root / source, root / f"{source}-{bits}-{i}", bits) for i in range(REPEATS)]
            for name in ("seconds", "peak_mb"):
                figures[f"{source}_{bits}bit_{name}"] = round(statistics.median(run[name] for run in runs), 2)
            size = (root / f"{source}-{bits}-0" / WEIGHTS).stat().st_size
            figures[f"{source}_{bits}bit_pack_mb"] = round(size / 1e6, 1)
    record("pack", {**config, "repeats": REPEATS}, figures)


def _pack(source: Path, output: Path, bits: int) -> dict[str, float]:
    command = [sys.executable, "-c", _CHILD, str(source), str(output), str(bits)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{source.name}, {bits} bits: {result['seconds']:.1f} s, {result['peak_mb']:.0f} MB", flush=True)
    return result


if __name__ == "__main__":
    main()
