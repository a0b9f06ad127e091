"""What the rounds of `bench_serve.py` measured, as tables and as the ratios that it exists for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from serve.rounds import Rows
from serve.routes import CANNOT

Figures = dict[str, float | None]

# {figure: (route, what it is compared with)}; the fastest of several
_STEPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "no_adapter_vs_base": ("kernel none", ("base",)),
    "one_r8_vs_base": ("kernel one r8", ("base",)),
    "one_r16_vs_base": ("kernel one r16", ("base",)),
    "mixed16_r8_vs_base": ("kernel 16 r8", ("base",)),
    "mixed16_r16_vs_base": ("kernel 16 r16", ("base",)),
    "mixed16_ranks_vs_base": ("kernel 16 mixed", ("base",)),
    "mixed16_r8_f16_vs_base": ("kernel 16 r8 f16", ("base",)),
    "mixed16_r16_f16_vs_base": ("kernel 16 r16 f16", ("base",)),
    "mixed16_ranks_f16_vs_base": ("kernel 16 mixed f16", ("base",)),
    "rows_r8_vs_base": ("rows 16 r8", ("base",)),
    "rows_r16_vs_base": ("rows 16 r16", ("base",)),
    "rows_ranks_vs_base": ("rows 16 mixed", ("base",)),
    "mixed16_vs_sequential": ("kernel 16 r8", ("fast-1 16 r8", "kernel-1 16 r8")),
    "mixed16_r16_vs_sequential": ("kernel 16 r16", ("fast-1 16 r16", "kernel-1 16 r16")),
    "base_vs_genai": ("base", ("genai-tuned none",)),
    "one_r8_vs_genai": ("kernel one r8", ("olive-8 one r8",)),
    "mixed16_r8_vs_genai": ("kernel 16 r8", ("olive-8 16 r8",)),
    "mixed16_r16_vs_genai": ("kernel 16 r16", ("olive-16 16 r16",)),
    "base_vs_llamacpp": ("base", ("llamacpp none",)),
    "one_r8_vs_llamacpp": ("kernel one r8", ("llamacpp one r8",)),
    "mixed16_r8_vs_llamacpp": ("kernel 16 r8", ("llamacpp 16 r8",)),
    "mixed16_r16_vs_llamacpp": ("kernel 16 r16", ("llamacpp 16 r16",)),
}
_ANSWERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "answers_r8_vs_none": ("generator 16 r8", ("generator none",)),
    "answers_r16_vs_none": ("generator 16 r16", ("generator none",)),
    "answers_r8_vs_sequential": ("generator 16 r8", ("generator-1 16 r8", "fast-1 16 r8")),
    "answers_none_vs_genai": ("generator none", ("genai-tuned none",)),
    "answers_r8_vs_genai": ("generator 16 r8", ("olive-8 16 r8",)),
    "answers_none_vs_llamacpp": ("generator none", ("llamacpp none",)),
    "answers_r8_vs_llamacpp": ("generator 16 r8", ("llamacpp 16 r8",)),
    "answers_none_vs_llamacpp_server": ("generator none", ("llamacpp-server none",)),
    "answers_r8_vs_llamacpp_server": ("generator 16 r8", ("llamacpp-server 16 r8",)),
}


def step_figures(rows: Rows, contexts: Iterable[int]) -> Figures:
    """The ratios of single steps; those after longer contexts than the first have it in their name."""
    figures: Figures = {}
    for number, context in enumerate(contexts):
        suffix = f"_{context}" if number else ""
        figures |= {f"{key}{suffix}": speed_ratio(rows, f"steps@{context}", *pair) for key, pair in _STEPS.items()}
    return figures


def answer_figures(rows: Rows) -> Figures:
    """The ratios of whole answers."""
    return {key: speed_ratio(rows, "answers", *pair) for key, pair in _ANSWERS.items()}


def speed_ratio(rows: Rows, measure: str, ours: str, others: Iterable[str]) -> float | None:
    """How many times as fast `ours` is as the fastest of `others`: the median of the rounds' ratios; None: no such run."""
    found = {name: rows[name].speeds[measure] for name in others if name in rows and measure in rows[name].speeds}
    if ours not in rows or measure not in rows[ours].speeds or not found:
        return None
    fastest = max(found.values(), key=statistics.median)
    return statistics.median(a / b for a, b in zip(rows[ours].speeds[measure], fastest, strict=False))


def print_rows(title: str, rows: Rows, denominator: str) -> None:
    """All routes of one part. `agrees`: the least correlation of a row's scores with those of its adapter alone."""
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row.speeds))
    print(f"\n{title}; tokens per second of all rows, and over that of {denominator}")
    print(f"{'route':24}" + "".join(f"{measure:>14}{'':8}" for measure in measures) + f"{'agrees':>9}")
    for name, row in rows.items():
        cells = []
        for measure in measures:
            speed, ratio = row.speed(measure), speed_ratio(rows, measure, name, [denominator])
            cells.append(f"{'-' if speed is None else f'{speed:.1f}':>14}{'' if ratio is None else f'{ratio:.2f}':>8}")
        agrees = "-" if row.agrees is None else f"{row.agrees:.4f}"
        print(f"{name:24}{''.join(cells)}{agrees:>9}")
    for start, words in CANNOT.items():
        if any(name.startswith(start) for name in rows):
            print(f"  {start.strip()}: {words}")
    print(flush=True)
