"""How fast and how small are the exported graphs, beside those of onnxruntime-genai, llama.cpp and torch.onnx?

    make setup
    python benchmarks/bench_export.py                               # our profiles alone, at both sizes
    python benchmarks/bench_export.py --peer-python PEERS/bin/python --shape 135m --threads 1,2

The peers live in an environment of their own, PEERS. What of it is missing is skipped with a word:

    python3.11 -m venv PEERS
    PEERS/bin/pip install onnxruntime-genai onnxruntime==1.32.0 olive-ai peft transformers gguf safetensors
    PEERS/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=ON
        -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
        PEERS/bin/pip install --no-binary llama-cpp-python llama-cpp-python       # all that the processor has

One checkpoint with random weights is exported by all: ours from a pack as `fedlora pack` makes it (4 bits, the largest
block that fits, embedding and head of 8 bits) and from one with a head of 4 bits, as genai has it; genai's builder at int4
as it is and tuned, with our block (BUILDS in export/artifacts.py), Olive's adapter inputs on a graph of the builder,
llama.cpp's Q4_0, torch.onnx in float32. Graphs run in plain sessions; genai's in its own loop too. In every round each
route has a fresh process, which decodes after 16 and 1024 tokens and reads prompts of 128 and 1024. The processes of a
round stand side by side and take turns, one thing after the other; the rounds begin with another route each, and ratios
are medians of the rounds' ratios.

The last line is one JSON object. Base is compared with base, the faster of a plain session and genai's loop; with an
adapter the graph `fast` speaks for us, or `compat` where it is not made. Above 1 is faster than the peer. Decoding is after
16 tokens, a prompt has 128. The costs are the time of a step over that of the graph without adapter inputs. `swap_ms` is
what a step takes longer when its adapter was changed just before, `load_ms` the reading and checking of the file.
`export_extra_mb` is the peak of `fedlora export` less the pack's size. `share_of_limit` is the time in which base and
adapter of rank 16 can be read over that of a step. Figures of the larger model end in _1b, those of more threads in _2t.
One thread's time is the processor's, see export/worker.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedlora.exported.inputs import input_values
from fedlora.peft.directory import read_peft

from export.artifacts import SHAPES, Artifacts, make_base, make_genai, make_llamacpp, make_ours, make_torch
from export.routes import OURS, PEERS, Route
from export.table import Row, Rows, print_table, ratios
from harness.bandwidth import bytes_per_step, read_bandwidth
from harness.process import Worker, WorkerError, peer_versions
from harness.record import record

_MAKERS = {"genai": make_genai, "llamacpp": make_llamacpp, "torch": make_torch}
_SWAP_RANK, _LOADS = 16, 5


def main() -> None:
    options = _options()
    figures: dict[str, float | None] = {}
    for shape in SHAPES if options.shape == "all" else [options.shape]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            artifacts = make_base(Path(folder), shape, {route.artifact for route in _routes(options).values()})
            make_ours(artifacts)
            for peer in options.peers:
                _MAKERS[peer](artifacts, options.peer_python)
            for threads in options.threads:
                suffix = ("" if shape == "135m" else f"_{shape}") + ("" if threads == 1 else f"_{threads}t")
                found = _measure(f"{shape}, {threads} threads", artifacts, threads, options)
                figures |= {f"{key}{suffix}": value for key, value in found.items()}
    configuration = vars(options) | {"peer_versions": peer_versions(options.peer_python)}
    record("export", configuration, {key: round(value, 3) for key, value in figures.items() if value is not None})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], help="such as 1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="of decoding, a round")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 8 steps, nothing at 1024 tokens")
    parser.add_argument("--routes", default="", help=f"only these of {', '.join([*OURS, *PEERS])}")
    parser.add_argument("--peers", default=",".join(_MAKERS), help=f"of {', '.join(_MAKERS)}, or an empty string")
    parser.add_argument("--peer-python", help="the interpreter of the peers' environment")
    parser.add_argument("--at-once", type=int, default=0, help="processes side by side; 0: what memory holds")
    parser.add_argument("--folder", help="where the models are written for as long as it runs: 10 GB for 1b")
    options = parser.parse_args()
    options.peers = [peer for peer in options.peers.split(",") if peer] if options.peer_python else []
    options.routes = [route for route in options.routes.split(",") if route]
    unknown = [name for name in options.peers if name not in _MAKERS]
    unknown += [name for name in options.routes if name not in OURS and name not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.quick:
        options.rounds, options.steps = 2, 8
    return options


def _routes(options: argparse.Namespace) -> dict[str, Route]:
    return {name: route for name, route in {**OURS, **PEERS}.items() if not options.routes or name in options.routes}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _measure(title: str, artifacts: Artifacts, threads: int, options: argparse.Namespace) -> dict[str, float | None]:
    """Run all rounds, print the table, and return the figures."""
    rows = {name: Row(route) for name, route in _routes(options).items() if route.artifact in artifacts.made}
    pack = artifacts.pack
    bandwidth: list[float] = []
    for number in range(options.rounds):
        names = list(rows)
        start = number * len(names) // options.rounds
        names = [*names[start:], *names[:start]]
        at_once = options.at_once or _room_for(artifacts)
        for first in range(0, len(names), at_once):
            _round({name: rows[name] for name in names[first : first + at_once]}, artifacts, threads, options)
        rows = {name: row for name, row in rows.items() if not row.failure}
        bandwidth.append(read_bandwidth(threads, bytes_per_step(pack, [_SWAP_RANK])))
    print_table(title, rows, artifacts)
    figures = ratios(rows)
    speaker = "fast" if "fast" in rows else "compat"
    figures |= _swap_figures(rows, f"{speaker}-r{_SWAP_RANK}", artifacts)
    figures |= _export_figures(speaker, artifacts)
    row = rows.get(f"{speaker}-r{_SWAP_RANK}")
    if row:
        least_s = bytes_per_step(pack, [_SWAP_RANK]) / max(bandwidth)
        figures["share_of_limit"] = least_s / statistics.median(row.seconds["decode@16"])
    return figures


def _round(rows: Rows, artifacts: Artifacts, threads: int, options: argparse.Namespace) -> None:
    """A process for each of the routes; what is measured is measured of one after the other, before the next thing."""
    workers: dict[str, Worker] = {}

    def each(ask: Callable[[Row, Worker], None], of: Rows = rows) -> None:
        for name, row in of.items():
            try:
                if not row.failure:
                    ask(row, workers[name])
            except WorkerError as error:
                row.failure = str(error)
                print(f"{name}: skipped: {error}", flush=True)

    try:
        for name, row in rows.items():
            python = options.peer_python if row.route.is_peers else sys.executable
            workers[name] = Worker(row.route.job(artifacts, threads), python, "export.worker")
            each(_load, {name: row})  # before the next one starts
        each(lambda row, worker: row.add("decode@16", worker.ask("decode", context=16, steps=options.steps)))
        each(lambda row, worker: row.add("prefill@128", worker.ask("prefill", length=128, repeats=3)))
        if not options.quick:
            each(lambda row, worker: row.add("prefill@1024", worker.ask("prefill", length=1024, repeats=1)))
            each(lambda row, worker: row.add("decode@1024", worker.ask("decode", context=1024, steps=options.steps)))
        each(lambda row, worker: _finish(row, worker, options.steps))
    finally:
        for worker in workers.values():
            worker.close()


def _load(row: Row, worker: Worker) -> None:
    loaded = worker.loaded()
    row.load_s.append(loaded["load_s"])
    row.loaded_mb.append(loaded["rss_mb"])
    if not row.logits and not row.route.rank and row.route.artifact != "merged":
        row.logits = worker.ask("scores", context=16)["logits"]


def _finish(row: Row, worker: Worker, steps: int) -> None:
    if row.route.rank == _SWAP_RANK and row.route.kind == "onnxruntime":
        answer = worker.ask("swap", context=16, steps=steps)
        row.swaps.append(statistics.median(answer["swapped"]) - statistics.median(answer["seconds"]))
    memory = worker.ask("memory")
    row.after_mb.append(memory["rss_mb"])
    row.anon_mb.append(memory["anon_mb"])


def _room_for(artifacts: Artifacts) -> int:
    """How many processes memory holds beside each other: the largest, of float32, has 8 times the pack."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    size_bytes = (artifacts.folder / "pack" / "model.safetensors").stat().st_size
    return max(1, int(fields["MemAvailable"].split()[0]) * 1024 // (10 * size_bytes))


def _swap_figures(rows: Rows, name: str, artifacts: Artifacts) -> dict[str, float | None]:
    path = artifacts.folder / f"adapter-{_SWAP_RANK}"
    load_s = statistics.median(_timed(lambda: input_values(read_peft(path).adapter)) for _ in range(_LOADS))
    swaps = rows[name].swaps if name in rows else []
    return {"swap_ms": statistics.median(swaps) * 1e3 if swaps else None, "load_ms": load_s * 1e3}


def _export_figures(speaker: str, artifacts: Artifacts) -> dict[str, float | None]:
    made, pack_mb = artifacts.made, (artifacts.folder / "pack" / "model.safetensors").stat().st_size / 1e6
    figures: dict[str, float | None] = {}
    if speaker in made:
        figures |= {"export_s": made[speaker]["seconds"], "export_extra_mb": made[speaker]["peak_mb"] - pack_mb}
    if "genai" in made:
        figures |= {"genai_export_s": made["genai"]["seconds"], "genai_export_peak_mb": made["genai"]["peak_mb"]}
    return figures


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
