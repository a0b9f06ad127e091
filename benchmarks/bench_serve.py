"""What does it cost that each row of a batch has an adapter of its own, and how does a service of many adapters do?

    make setup
    python benchmarks/bench_serve.py                                    # ours alone, both models, 1 and 2 threads
    python benchmarks/bench_serve.py --peer-python PEERS/bin/python     # beside onnxruntime-genai and llama.cpp
    python benchmarks/bench_serve.py --quick --models stories           # does it still run?

The peers live in an environment of their own, PEERS, built as bench_export.py says, and with what the server of
llama-cpp-python needs besides. What of it is missing is skipped with a word:

    PEERS/bin/pip install fastapi uvicorn sse-starlette pydantic-settings starlette-context

Two models: one of SmolLM2-135M's shape with random weights, and stories260K where its folder is there (--stories). Each has
16 adapters of rank 8, 16 of rank 16 and 16 of ranks from 4 to 64, all different, on all linear modules. All is packed and
exported as `fedlora pack` and `fedlora export` do it: 4 bits, the largest block that fits, embedding and head of 8 bits.
genai has its builder's tuned int4 graph, and for adapters the builder's graph whose constants Olive made inputs; llama.cpp
has Q4_0. genai cannot run stories260K, whose heads have 8 features.

1. Steps of 16 rows after 64 and 512 tokens, each row with one token and one choice of the likeliest next:

    base      the graph of profile `base` for the same batch, which takes no adapter: what all is compared with
    kernel    the service's own step (`RowGraph`) with the operator in C; adapters of float32, or float16 (f16)
    rows      the same with the portable graph, for which adapters are copied side by side when rows change
    fast-1    one row in a session with one adapter, and
    kernel-1  one row in the service's step: the sequential runs. 16 of them are one row 16 times
    peers     16 sequences in a batch where they have one adapter or none, else one after another

   `none`, `one r8` and `16 r8` are no adapter, one in all rows, and another in each. Peers have read their contexts, so
   they are measured after 64 tokens only; ours have any numbers in their caches, which take as long to read. Once, with
   prompts of 16 tokens, every route's scores are compared with those of the graph for one adapter, row by row: `agrees` is
   the least correlation. Below 0.999, or 0.8 for a peer, which quantizes its own way, the route is reported and counted in
   `steps_disagree`. On the larger model the scores without an adapter correlate with those of one by less than 0.5.

2. Whole answers: 16 requests at once, 64 tokens of prompt and 64 new, until the last one ends. `generator` is
   `BatchEngine` with scheduling, choosing and text, `generator-1` the same with one row; the others are loops over steps
   that make no text, and the server of llama-cpp-python is asked over HTTP. No prompt begins like another one.
   Once, the generators' log-probabilities of a row's 20 likeliest tokens are compared, which lie close together: 0.9.

3. The service: what requests wait at the generator, 1, 8 and 32 at once, to their first text and from text to text; what
   a swap adds to a step: from a version that is in the store, and that no row has, to the scores of a step with it; what
   loading takes, part by part, with the file in the page cache; 1, 16, 256 and 1000 adapters under a uniform and a zipf
   workload (exponent 1.1), with room in memory for all or for half of them. These are of rank 8 on q and v alone: on all
   modules 1000 would take 10 GB.

Every route has a process, in which it waits while others are measured; in every round each has its turn, another one first,
and ratios are medians of the rounds' ratios. One thread's seconds of parts 1 and 2 are the processor's, so that what else
runs on the machine counts less; the wall's with more threads, of the server, and in part 3: a machine that does something
else as well tells little of these. It takes 12 minutes on 2 cores with peers, 10 GB of memory at most and 4 GB of disk;
--rounds 5 --answer-rounds 3 takes twice as long and is steadier, --quick takes 2 minutes or 3 without peers.

The last line is one JSON object; what is above 1 is faster than what it is compared with:

    mixed16_r8_vs_base, mixed16_r16_vs_base   16 adapters over `base`; _ranks_ those of ranks from 4 to 64, _f16_ in float16
    mixed16_vs_sequential                     16 adapters of rank 8 over the faster of the sequential runs
    share_of_limit                            the time in which base and 16 adapters of rank 16 can be read, over that of
                                              a step, which reads keys and values as well
    swap_ms, swap16_ms                        what a swap adds to a step of one row, and of 16
    first_ms_8, next_ms_8, .._p95_ms_8        to the first text and between texts, 8 requests at once
    tokens_per_s_256_zipf, hit_rate_256_zipf  256 adapters, room for all; _half: for half of them

Figures after 512 tokens end in _512, those of stories260K in _stories, those of more threads in _2t. stories260K has room
for 448 tokens before the steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from export.artifacts import Artifacts
from harness.bandwidth import bytes_per_step, read_bandwidth
from harness.process import peer_versions
from harness.record import record
from serve.artifacts import MODELS, RANKS, STORIES, make_base, make_peers, make_resident
from serve.rounds import Processes, check, measure_answers, measure_steps, rows_of
from serve.routes import ANSWERS, PROCESSES, SLACK, STEPS
from serve.table import Figures, answer_figures, print_rows, step_figures
from serve.waits import load_figures, resident_figures, service_figures, swap_figures

_PEERS = ("genai", "llamacpp")
_LIMIT_ROUTE = "kernel 16 r16"
_MORE_STEPS = {"135m": 1, "stories": 30}  # times as many of the model that takes less than a millisecond
_PROMPT = 64  # tokens, of a whole answer
_LOADS = 7


def main() -> None:
    options = _options()
    figures: Figures = {}
    for model in options.models:
        if model == "stories" and not (options.stories / "config.json").is_file():
            print(f"stories: skipped: {options.stories} is not there; name its folder with --stories", flush=True)
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            artifacts = make_base(Path(folder), model, options.stories)
            make_peers(artifacts, options.peers, options.peer_python)
            resident = make_resident(artifacts, max(options.resident, default=0))
            for threads in options.threads:
                suffix = ("" if model == "135m" else f"_{model}") + ("" if threads == 1 else f"_{threads}t")
                found = _measure(model, artifacts, threads, options)
                if threads == options.threads[0]:
                    found |= _many_adapters(artifacts, threads, resident, options)
                figures |= {f"{key}{suffix}": value for key, value in found.items()}
    configuration = vars(options) | {
        "stories": options.stories.name,
        "peer_versions": peer_versions(options.peer_python),
    }
    record("serve", configuration, {key: round(value, 3) for key, value in figures.items() if value is not None})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_words, default=[*MODELS], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], help="such as 1,2")
    parser.add_argument(
        "--contexts", type=_numbers, default=[64, 512], help="tokens before a step; peers' is the first"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of steps")
    parser.add_argument("--steps", type=int, default=6, help="of all rows, a round; four times as many of a single one")
    parser.add_argument("--answer-rounds", type=int, default=1, help="of whole answers")
    parser.add_argument("--new", type=int, default=64, help="tokens of a whole answer, after 64 of a prompt")
    parser.add_argument("--resident", type=_numbers, default=[1, 16, 256, 1000], help="how many adapters a store has")
    parser.add_argument("--requests", type=int, default=32, help="to each of these stores")
    parser.add_argument(
        "--quick", action="store_true", help="2 rounds of 3 steps after 64 tokens, short answers, 16 adapters"
    )
    parser.add_argument("--peers", type=_words, default=[*_PEERS], help=f"of {', '.join(_PEERS)}, or an empty string")
    parser.add_argument("--peer-python", help="the interpreter of the peers' environment")
    parser.add_argument("--stories", type=Path, default=STORIES, help="the folder of stories260K")
    parser.add_argument("--folder", help="where all is written for as long as it runs: 4 GB")
    options = parser.parse_args()
    options.peers = options.peers if options.peer_python else []
    unknown = [*({*options.models} - {*MODELS}), *({*options.peers} - {*_PEERS})]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.quick:
        options.rounds, options.steps, options.answer_rounds, options.new, options.requests = 2, 3, 1, 16, 16
        options.contexts, options.threads, options.resident = options.contexts[:1], options.threads[:1], [1, 16]
    return options


def _measure(model: str, artifacts: Artifacts, threads: int, options: argparse.Namespace) -> Figures:
    """Single steps, whole answers and what requests wait, with one number of threads."""
    title, steps = f"{model}, {threads} threads", _MORE_STEPS[model] * options.steps
    processes = _processes(artifacts, threads, options)
    try:
        figures = _steps(title, processes, steps, options)
        figures |= _answers(title, processes, options)
        figures |= service_figures(processes, 1 if options.quick else 2)
        figures |= load_figures(processes, _LOADS)
    finally:
        processes.close()
    return figures


def _processes(artifacts: Artifacts, threads: int, options: argparse.Namespace) -> Processes:
    answer = _PROMPT + options.new
    return Processes(
        artifacts,
        threads,
        longest=max(*options.contexts, answer),
        peers_longest=max(options.contexts[0], answer),
        peer_python=options.peer_python,
    )


def _steps(title: str, processes: Processes, steps: int, options: argparse.Namespace) -> Figures:
    artifacts, threads = processes.artifacts, processes.threads
    longest = artifacts.pack.shape.max_positions - SLACK
    contexts = list(dict.fromkeys(min(context, longest) for context in options.contexts))
    rows = rows_of(STEPS, processes)
    figures: Figures = {}
    if threads == options.threads[0]:
        figures["steps_disagree"] = float(len(check(processes, rows)))
    bandwidth = [read_bandwidth(threads, bytes_per_step(artifacts.pack, RANKS["r16"]))]
    measure_steps(processes, rows, contexts, options.rounds, steps)
    bandwidth.append(read_bandwidth(threads, bytes_per_step(artifacts.pack, RANKS["r16"])))
    print_rows(f"{title}: steps", rows, "base")
    figures |= step_figures(rows, contexts)
    speed = rows[_LIMIT_ROUTE].speed(f"steps@{contexts[0]}") if _LIMIT_ROUTE in rows else None
    if speed:
        least_s = bytes_per_step(artifacts.pack, RANKS["r16"]) / max(bandwidth)
        figures["share_of_limit"] = least_s * speed / len(RANKS["r16"])
        gb_per_s = max(bandwidth) / 1e9
        print(
            f"{_LIMIT_ROUTE}: to read base and adapters takes {least_s * 1e3:.1f} ms at {gb_per_s:.1f} GB/s", flush=True
        )
    figures |= swap_figures(processes, contexts[0], 4 * options.steps)
    processes.close([name for name in PROCESSES if name in {"base", "kernel", "kernel-1", "rows", "olive-16"}])
    return figures


def _answers(title: str, processes: Processes, options: argparse.Namespace) -> Figures:
    rows = rows_of(ANSWERS, processes)
    ours = {name: row for name, row in rows.items() if PROCESSES[row.route.process].kind == "generator"}
    figures: Figures = {}
    if processes.threads == options.threads[0]:
        figures["answers_disagree"] = float(len(check(processes, ours)))
    measure_answers(processes, rows, options.answer_rounds, _PROMPT, options.new)
    print_rows(f"{title}: {len(RANKS['r8'])} answers of {_PROMPT} + {options.new} tokens", rows, "generator none")
    processes.close([name for name in PROCESSES if name != "generator"])
    return figures | answer_figures(rows)


def _many_adapters(artifacts: Artifacts, threads: int, folder: Path, options: argparse.Namespace) -> Figures:
    processes = _processes(artifacts, threads, options)
    try:
        return resident_figures(processes, folder, options.resident, options.requests)
    finally:
        processes.close()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    main()
