"""What the rounds of `bench_export.py` measured, as a table and as ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from export.artifacts import Artifacts
from export.routes import Route

_MB = 1e6


@dataclass(slots=True)
class Row:
    """One route; a value a round, so that what is compared was measured side by side."""

    route: Route
    seconds: dict[str, list[float]] = field(default_factory=dict)  # {decode@16: of a step, prefill@128: of the prompt}
    load_s: list[float] = field(default_factory=list)
    loaded_mb: list[float] = field(default_factory=list)
    after_mb: list[float] = field(default_factory=list)
    anon_mb: list[float] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)  # seconds more of a step before which the adapter was changed
    failure: str = ""
    logits: list[float] = field(default_factory=list)

    def add(self, measure: str, answer: Mapping[str, Sequence[float]]) -> None:
        self.seconds.setdefault(measure, []).append(statistics.median(answer["seconds"]))

    def tokens_per_s(self, measure: str) -> float:
        return _tokens(measure) / statistics.median(self.seconds[measure])


Rows = Mapping[str, Row]


def time_ratio(rows: Rows, measure: str, over: str, under: str) -> float | None:
    """How many times as long `over` takes: the median of the rounds' ratios; None where one did not run."""
    if over not in rows or under not in rows:
        return None
    pairs = zip(rows[over].seconds.get(measure, []), rows[under].seconds.get(measure, []), strict=False)
    ratios = [a / b for a, b in pairs]
    return statistics.median(ratios) if ratios else None


def fastest(rows: Rows, measure: str, names: Iterable[str]) -> str:
    """The fastest of those of `names` that ran; an empty string where none did."""
    found = [name for name in names if name in rows and measure in rows[name].seconds]
    return max(found, key=lambda name: rows[name].tokens_per_s(measure), default="")


def print_table(title: str, rows: Rows, artifacts: Artifacts) -> None:
    """All routes of one shape and number of threads; `agrees` is the correlation of logits with the first route's."""
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row.seconds))
    print(f"\n{title}; tokens per second; s to load; resident MB then, at the end, and of that in no file; MB on disk")
    columns = "".join(f"{measure:>14}" for measure in measures)
    print(f"{'route':20}{columns}{'load s':>8}{'loaded':>8}{'end':>7}{'anon':>7}{'disk':>7}{'agrees':>8}")
    first = next((row.logits for row in rows.values() if row.logits), [])
    for name, row in rows.items():
        speeds = "".join(f"{row.tokens_per_s(m):14.1f}" if m in row.seconds else f"{'-':>14}" for m in measures)
        memory = [statistics.median(values) for values in (row.loaded_mb, row.after_mb, row.anon_mb)]
        disk = artifacts.made[row.route.artifact].get("bytes", 0.0) / _MB
        agrees = f"{np.corrcoef(row.logits, first)[0, 1]:.3f}" if row.logits else "-"
        print(
            f"{name:20}{speeds}{statistics.median(row.load_s):8.2f}{memory[0]:8.0f}{memory[1]:7.0f}{memory[2]:7.0f}{disk:7.0f}{agrees:>8}"
        )
    print(flush=True)


def ratios(rows: Rows) -> dict[str, float | None]:
    """The figures that compare routes: base with base, and with an adapter `fast`, or `compat` where that is not made."""
    ours = "fast" if "fast" in rows else "compat"
    figures: dict[str, float | None] = {}
    measures = {"decode": "decode@16", "decode_at_1024": "decode@1024", "prefill": "prefill@128"}
    measures["prefill_1024"] = "prefill@1024"
    peers: dict[str, tuple[str, ...]] = {
        "genai": ("genai-plain", "genai-loop"),
        "genai_tuned": ("genai-tuned-plain", "genai-tuned-loop"),
    }
    peers |= {"llamacpp": ("llamacpp",), "torch": ("torch",)}
    for key, measure in measures.items():
        for peer, names in peers.items():
            best = fastest(rows, measure, names)
            figures[f"{key}_vs_{peer}"] = time_ratio(rows, measure, best, "base")
            figures[f"{key}_head4_vs_{peer}"] = time_ratio(rows, measure, best, "base-head4")
            if best and len(names) > 1:
                print(f"{key}: {best} stands for {peer}")
        for rank in (8, 16):
            olive = fastest(rows, measure, (f"olive-plain-r{rank}", f"olive-loop-r{rank}"))
            figures[f"{key}_r{rank}_vs_olive"] = time_ratio(rows, measure, olive, f"{ours}-r{rank}")
            figures[f"{key}_r{rank}_vs_llamacpp"] = time_ratio(rows, measure, f"llamacpp-r{rank}", f"{ours}-r{rank}")
    costs = {"idle_adapter_cost": ours, "r8_cost": f"{ours}-r8", "r16_cost": f"{ours}-r16", "r64_cost": "compat-r64"}
    for key, name in costs.items():
        figures[key] = time_ratio(rows, "decode@16", name, "base")
    return figures


def _tokens(measure: str) -> int:
    kind, length = measure.split("@")
    return int(length) if kind == "prefill" else 1
