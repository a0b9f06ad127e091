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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.family import DecoderShape, decoder_shape
from fedlora.pack import WEIGHTS
from fedlora.tensor_file import TensorPlan, from_float32, write_tensor_file
from numpy.typing import NDArray
from record import record

REPEATS = 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

# Runs in a process of its own: argv is source, output, bits.
_CHILD = """
import json, sys, time
from pathlib import Path
from fedlora.packing import make_pack
from fedlora.quantize import Quantization
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
        shape = decoder_shape(CONFIG, "benchmark")
        make_checkpoint(root / "one", shape, shards=1)
        make_checkpoint(root / "shards", shape, shards=4)
        largest = 2 * max(math.prod(dims) for dims in (shape.linear_modules() | shape.vocabulary_modules()).values())
        figures: dict[str, float] = {"largest_tensor_mb": largest / 1e6}
        for source, bits in (("one", 4), ("one", 8), ("shards", 4)):
            runs = [_pack(root / source, root / f"{source}-{bits}-{i}", bits) for i in range(REPEATS)]
            for name in ("seconds", "peak_mb"):
                figures[f"{source}_{bits}bit_{name}"] = round(statistics.median(run[name] for run in runs), 2)
            size = (root / f"{source}-{bits}-0" / WEIGHTS).stat().st_size
            figures[f"{source}_{bits}bit_pack_mb"] = round(size / 1e6, 1)
    record("pack", CONFIG | {"repeats": REPEATS}, figures)


def make_checkpoint(directory: Path, shape: DecoderShape, shards: int) -> None:
    """Random bf16 weights of `shape`, with what else a checkpoint needs."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    matrices = shape.vocabulary_modules() | shape.linear_modules()
    plans = [TensorPlan(name=f"{name}.weight", dtype="BF16", shape=dims) for name, dims in matrices.items()]
    plans += [TensorPlan(name=f"{n}.weight", dtype="BF16", shape=(shape.hidden_size,)) for n in shape.norm_modules()]
    generator = np.random.default_rng(0)

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        yield from_float32(generator.normal(0, 0.02, plan.shape).astype(np.float32), "BF16")

    if shards == 1:
        write_tensor_file(directory / "model.safetensors", plans, fill)
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name, part = f"model-{number + 1:05d}-of-{shards:05d}.safetensors", plans[number::shards]
        write_tensor_file(directory / name, part, fill)
        weight_map |= {plan.name: name for plan in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _pack(source: Path, output: Path, bits: int) -> dict[str, float]:
    command = [sys.executable, "-c", _CHILD, str(source), str(output), str(bits)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{source.name}, {bits} bits: {result['seconds']:.1f} s, {result['peak_mb']:.0f} MB", flush=True)
    return result


if __name__ == "__main__":
    main()
