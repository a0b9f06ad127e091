"""The third part of `bench_serve.py`: what a request waits, what a swap and a load cost, and many adapters in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from harness.popularity import WORKLOADS
from serve.engine import ROWS
from serve.rounds import Processes
from serve.table import Figures

_PROMPT, _NEW = 64, 32  # tokens of a request
_AT_ONCE = (1, 8, 32)
_SWAP_CASE = "16 r16"
_RESIDENT_PROMPT, _RESIDENT_NEW = 16, 16


def service_figures(processes: Processes, waves: int) -> Figures:
    """Milliseconds to the first text and between texts, median and p95, at so many requests at once.

    There are `waves` times as many requests, and at least 8.
    """
    figures: Figures = {}
    print(f"requests of {_PROMPT} + {_NEW} tokens, each with one of {ROWS} adapters of rank 8, at the generator")
    print(f"{'at once':>8}{'tokens/s':>10}{'first ms':>10}{'p95':>9}{'next ms':>10}{'p95':>9}")
    for at_once in _AT_ONCE:
        count = max(waves * at_once, 8)
        answer = processes.ask("generator", "service", at_once=at_once, count=count, prompt=_PROMPT, new=_NEW)
        if answer is None:
            return figures
        first, gaps = _median_and_p95(answer["first_s"]), _median_and_p95(answer["gaps_s"])
        speed = answer["tokens"] / answer["seconds"]
        print(f"{at_once:8}{speed:10.1f}{first[0]:10.1f}{first[1]:9.1f}{gaps[0]:10.2f}{gaps[1]:9.2f}", flush=True)
        figures |= {f"first_ms_{at_once}": first[0], f"first_p95_ms_{at_once}": first[1]}
        figures |= {f"next_ms_{at_once}": gaps[0], f"next_p95_ms_{at_once}": gaps[1]}
    return figures


def swap_figures(processes: Processes, context: int, count: int) -> Figures:
    """What a step takes longer when a row first takes another adapter of rank 16 that is in the store, in milliseconds."""
    figures: Figures = {}
    for key, name, rows in (
        ("swap", "kernel-1", 1), ("swap16", "kernel", ROWS), ("swap16_rows", "rows", ROWS),
    ):  # fmt: skip
        answer = processes.ask(name, "swap", case=_SWAP_CASE, rows=rows, context=context, count=count)
        if answer is not None:
            plain, swapped = median(answer["seconds"]) * 1e3, median(answer["swapped"]) * 1e3
            figures[f"{key}_ms"] = swapped - plain
            print(f"{name}, {rows} rows: a step {plain:.2f} ms, with a swap before it {swapped:.2f} ms", flush=True)
    return figures


def load_figures(processes: Processes, repeats: int) -> Figures:
    """Milliseconds of each part of loading a PEFT directory of rank 16 that the page cache holds."""
    answer = processes.ask("generator", "load", case=_SWAP_CASE, repeats=repeats)
    if answer is None:
        return {}
    ms = {part: median(seconds) * 1e3 for part, seconds in answer.items()}
    ms["verify"] = ms["read and verify"] - ms["read"]
    print(
        "to load an adapter of rank 16, ms: " + ", ".join(f"{part} {value:.1f}" for part, value in ms.items()),
        flush=True,
    )
    return {f"{part.replace(' ', '_')}_ms": ms[part] for part in ("load", "read", "verify", "digest", "lay out")}


def resident_figures(processes: Processes, folder: Path, counts: Sequence[int], requests: int) -> Figures:
    """Tokens per second and hits, with so many adapters and memory for all or half of them."""
    figures: Figures = {}
    size = f"{_RESIDENT_PROMPT} + {_RESIDENT_NEW} tokens"
    print(f"{requests} requests of {size}, {ROWS} at once; adapters of rank 8 on q and v")
    head = {"adapters": 9, "in memory": 10, "MB": 7, "load s": 8, "workload": 10, "tokens/s": 10, "hits": 7}
    print("".join(f"{word:>{width}}" for word, width in (head | {"first ms": 10, "p95": 9}).items()))
    for adapters in counts:
        for share in (1.0, 0.5) if adapters > 1 else (1.0,):
            for workload in WORKLOADS:
                answer = processes.ask(
                    "generator", "resident", folder=str(folder), adapters=adapters, workload=workload, share=share,
                    count=requests, prompt=_RESIDENT_PROMPT, new=_RESIDENT_NEW,
                )  # fmt: skip
                if answer is None:
                    return figures
                speed, first = answer["tokens"] / answer["seconds"], _median_and_p95(answer["first_s"])
                _print_resident(adapters, workload, speed, first, answer)
                key = f"{adapters}_{workload}{'_half' if share < 1 else ''}"
                figures |= {f"tokens_per_s_{key}": speed, f"hit_rate_{key}": answer["hit_rate"]}
    return figures


def _print_resident(
    adapters: int, workload: str, speed: float, first: tuple[float, float], answer: dict[str, Any]
) -> None:
    print(
        f"{adapters:9}{answer['resident']:10}{answer['resident_mb']:7.0f}{answer['load_s']:8.1f}{workload:>10}"
        f"{speed:10.1f}{answer['hit_rate']:7.2f}{first[0]:10.1f}{first[1]:9.1f}",
        flush=True,
    )


def _median_and_p95(seconds: Sequence[float]) -> tuple[float, float]:
    """Both in milliseconds."""
    return median(seconds) * 1e3, float(np.percentile(seconds, 95)) * 1e3
