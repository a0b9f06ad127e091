"""How fast and how small is a training step here, beside PEFT and bitsandbytes?

    make setup && .venv/bin/pip install -c constraints.txt -e '.[bench]'
    python benchmarks/bench_train.py                     # every route at both sizes: about half an hour
    python benchmarks/bench_train.py --shapes 135M --routes bnb-nf4,kernels-save --threads 2
    python benchmarks/bench_train.py --isa AVX2          # oneDNN as on a machine without fast bf16
    python benchmarks/bench_train.py --curve             # do the losses fall as PEFT's do?

A step is forward, backward and AdamW on 4 x 256 tokens, LoRA of rank 16 on all seven linear layers, over Llama models with
random weights. Every route has a fresh process, the same weights, tokens and first adapter; seconds are medians of the
steps after the warm-up. The peers are described in train/peers.py, ours run through the public trainer. Of a route that
fails, a line above the table says why.

The last line is one JSON object. Where speed and memory would name two routes of ours, one is taken for both: the
recomputing one for `torch_*` and `kernel_*`; the other, which keeps its activations, has `torch_save_*` and
`kernel_save_*`. `bnb` is the faster of `bnb-nf4` and `bnb-nf4-fp32`. Speed is tokens per CPU second, memory the peak of the
whole process, all at 135M but `peak_mb_0_5b` (kernels-recompute). `share_of_limit` is the faster kernels route over
the products alone, at 4 FLOP per weight and token (train/limit.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization

from harness.checkpoints import CONFIGS, make_checkpoint
from harness.process import module_command, module_environment
from harness.record import record
from train.curve import curve
from train.job import LENGTH, SEQUENCES, TrainJob
from train.routes import COMPILED, OURS, ROUTES

_WARM_UP, _COMPILED_WARM_UP = 1, 2  # steps
_TOKENS = SEQUENCES * LENGTH


@dataclass(frozen=True, slots=True)
class Row:
    """What one route took."""

    tokens_per_cpu_s: float
    tokens_per_wall_s: float
    peak_mb: float
    measured: Mapping[str, Any]


Rows = Mapping[str, Row]


def main() -> None:
    options = _options()
    if options.curve:
        configuration, figures = curve()
        if figures:
            record("train-curve", configuration, figures)
        return
    figures = {}
    for name in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            rows, limit = _measure(name, Path(folder), options)
        _print_table(name, rows, limit)
        if name == "135M":
            figures |= _ratios(rows, limit)
        elif "kernels-recompute" in rows:
            figures["peak_mb_0_5b"] = round(rows["kernels-recompute"].peak_mb, 1)
    record(
        "train", vars(options) | {"cpu": _cpu(), "peers": _versions("transformers", "peft", "bitsandbytes")}, figures
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=_names(CONFIGS), default=list(CONFIGS), help=", ".join(CONFIGS))
    parser.add_argument("--routes", type=_names(ROUTES), default=list(ROUTES), help=", ".join(ROUTES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="with the first as warm-up (compiled: one more)")
    parser.add_argument("--seconds", type=float, default=1200, help="a route's process is ended after as many")
    parser.add_argument("--isa", default="", help="ONEDNN_MAX_CPU_ISA of every process; AVX2: as without fast bf16")
    parser.add_argument(
        "--curve", action="store_true", help="200 steps of PEFT's and of ours on stories260K, no timing"
    )
    options = parser.parse_args()
    if options.steps <= _WARM_UP:
        parser.error(f"--steps must be at least {_WARM_UP + 1}, got {options.steps}")
    return options


def _names(known: Mapping[str, object] | tuple[str, ...]) -> Any:
    def parsed(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return text.split(",")

    return parsed


def _measure(name: str, folder: Path, options: argparse.Namespace) -> tuple[Rows, dict[str, dict[str, float]]]:
    """The rows of the routes that ran, and the limits by dtype; those that did not are told at once."""
    checkpoint, pack = folder / name, folder / f"{name}-pack"
    make_checkpoint(checkpoint, CONFIGS[name])
    make_pack(str(checkpoint), pack, Quantization())
    environment = module_environment() | {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # the first step of the compiled route compiles
    }
    if options.isa:
        environment["ONEDNN_MAX_CPU_ISA"] = options.isa
    rows: dict[str, Row] = {}
    for route in options.routes:
        compiled = route in COMPILED
        job = TrainJob(
            checkpoint=str(checkpoint), pack=str(pack), steps=options.steps + compiled, threads=options.threads
        )
        result = _child("train.routes", [route, json.dumps(asdict(job))], environment, options.seconds)
        if isinstance(result, str):
            print(f"{name} {route}: {result}", flush=True)
        else:
            result["losses"] = result["losses"][: options.steps]  # the same last step for all
            rows[route] = _row(result, _COMPILED_WARM_UP if compiled else _WARM_UP)
            print(f"{name} {route}: {rows[route].tokens_per_cpu_s:.1f} tokens per CPU second", flush=True)
    limit = _child("train.limit", [str(checkpoint), str(options.threads)], environment, options.seconds)
    return rows, {} if isinstance(limit, str) else limit


def _child(module: str, arguments: list[str], environment: dict[str, str], timeout_s: float) -> dict[str, Any] | str:
    """What the module printed as its last line, or in a word why there is nothing."""
    command = module_command(sys.executable, module, *arguments)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout_s:g} s"
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}{': out of memory?' if done.returncode == -9 else ''}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _row(measured: dict[str, Any], warm_up: int) -> Row:
    cpu_s, wall_s = (statistics.median(measured[key][warm_up:]) for key in ("cpu_s", "wall_s"))
    return Row(_TOKENS / cpu_s, _TOKENS / wall_s, measured["peak_mb"], measured)


def _print_table(name: str, rows: Rows, limit: Mapping[str, Mapping[str, float]]) -> None:
    """All routes of one shape. Speed and memory 'x' are those of bnb: above 1 is faster, below 1 is smaller."""
    bnb = _bnb(rows)
    print(f"\n{name}, {SEQUENCES} x {LENGTH} tokens a step; tokens per CPU second and per second")
    print(
        f"{'route':22}{'tok/CPU s':>10}{'tok/s':>8}{'x bnb':>7}{'peak MB':>9}{'x bnb':>7}{'- imports':>10}{'loaded':>8}"
        f"{'load s':>8}{'step 1 s':>9}{'loss 1':>9}{'last':>9}"
    )
    for route, row in rows.items():
        speed = f"{row.tokens_per_cpu_s / bnb.tokens_per_cpu_s:.2f}" if bnb else "-"
        memory = f"{row.peak_mb / bnb.peak_mb:.2f}" if bnb else "-"
        got = row.measured
        print(
            f"{route:22}{row.tokens_per_cpu_s:10.1f}{row.tokens_per_wall_s:8.1f}{speed:>7}{row.peak_mb:9.0f}{memory:>7}"
            f"{row.peak_mb - got['imports_mb']:10.0f}{got['loaded_mb']:8.0f}{got['load_s']:8.1f}{got['wall_s'][0]:9.1f}"
            f"{got['losses'][0]:9.4f}{got['losses'][-1]:9.4f}  {got['compute']}"
        )
    for dtype, speeds in limit.items():
        print(
            f"products alone, {dtype}: {speeds['gflops']:.0f} GFLOP per CPU second: at most {speeds['tokens_per_s']:.1f} "
            f"tokens per CPU second; {speeds['recompute_tokens_per_s']:.1f} where the layers are computed again"
        )
    print(flush=True)


def _ratios(rows: Rows, limit: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of the last line; what did not run is left out."""
    figures: dict[str, float] = {}
    bnb, compiled = _bnb(rows), rows.get("bnb-nf4-compile")
    keys = {"torch-recompute": "torch", "torch-save": "torch_save"}
    keys |= {"kernels-recompute": "kernel", "kernels-save": "kernel_save"}
    for route, key in keys.items():
        row = rows.get(route)
        if row and bnb:
            figures[f"{key}_speed_vs_bnb"] = row.tokens_per_cpu_s / bnb.tokens_per_cpu_s
            figures[f"{key}_memory_vs_bnb"] = row.peak_mb / bnb.peak_mb
        if row and compiled:
            figures[f"{key}_speed_vs_bnb_compile"] = row.tokens_per_cpu_s / compiled.tokens_per_cpu_s
    kernels = [row.tokens_per_cpu_s for route, row in rows.items() if OURS.get(route, {}).get("kernels") == "on"]
    if kernels and limit:
        figures["share_of_limit"] = max(kernels) / max(speeds["tokens_per_s"] for speeds in limit.values())
    return {key: round(value, 3) for key, value in figures.items()}


def _bnb(rows: Rows) -> Row | None:
    """The faster of the compute dtypes: on a machine without fast bf16 nobody would take it."""
    found = [rows[route] for route in ("bnb-nf4", "bnb-nf4-fp32") if route in rows]
    return max(found, key=lambda row: row.tokens_per_cpu_s, default=None)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    main()
