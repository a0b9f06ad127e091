"""The processes of `bench_serve.py`, asked in turns, and what they answered."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifacts import Artifacts
from harness.process import Worker, WorkerError
from serve.routes import PROCESSES, REFERENCE, Route, runs

_CHECKED_TOKENS = 16
_SINGLE_STEPS = 4  # so many times as many steps of a single row as of all
# The least correlation of scores. A peer quantizes its own way; of a generator a row's 20 likeliest tokens are compared,
# whose scores lie close together.
_OURS_AGREE, _PEERS_AGREE, _GENERATORS_AGREE = 0.999, 0.8, 0.9


@dataclass(slots=True)
class Row:
    """One route; a value a round, so that what is compared was measured side by side."""

    route: Route
    speeds: dict[str, list[float]] = field(default_factory=dict)  # {measure: tokens per second of each round}
    agrees: float | None = None  # least correlation of a row's scores with those of the reference

    def speed(self, measure: str) -> float | None:
        """The median of the rounds; None where it was not measured."""
        return statistics.median(self.speeds[measure]) if measure in self.speeds else None


Rows = Mapping[str, Row]


class Processes:
    """Those of one model and number of threads, started when they are asked first. They sleep while others answer."""

    def __init__(
        self, artifacts: Artifacts, threads: int, *, longest: int, peers_longest: int, peer_python: str | None
    ) -> None:
        """The longest contexts are those that caches have to hold."""
        self.artifacts, self.threads = artifacts, threads
        self._longest, self._peers_longest, self._peer_python = longest, peers_longest, peer_python
        self._running: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}

    def has(self, name: str) -> bool:
        """Whether the process can be asked: its files were made, and it has not failed."""
        return runs(name, self.artifacts) and name not in self.failed

    def ask(self, name: str, what: str, **arguments: int | float | str) -> dict[str, Any] | None:
        """The answer of a process; None, with a word, where it cannot."""
        if not self.has(name):
            return None
        try:
            if name not in self._running:
                process = PROCESSES[name]
                longest = self._peers_longest if process.is_peers else self._longest
                job = process.job(name, self.artifacts, self.threads, longest)
                python = (self._peer_python or "") if process.is_peers else sys.executable
                self._running[name] = Worker(job, python, "serve.worker")
                self._running[name].loaded()
            return self._running[name].ask(what, **arguments)
        except WorkerError as error:
            self.failed[name] = str(error)
            print(f"{name}: skipped: {error}", flush=True)
            return None

    def close(self, names: Iterable[str] | None = None) -> None:
        """End some processes, or all."""
        for name in [*self._running] if names is None else [name for name in names if name in self._running]:
            worker = self._running.pop(name)
            if PROCESSES[name].kind == "llamacpp-server" and name not in self.failed:
                worker.ask("stop")
            worker.close()


def rows_of(routes: Mapping[str, Route], processes: Processes) -> dict[str, Row]:
    """An empty row for each route whose process can be asked, and for whose case it has adapters."""
    sets = {name: PROCESSES[name].adapter_sets(name, processes.artifacts) for name in PROCESSES}
    return {
        name: Row(route)
        for name, route in routes.items()
        if processes.has(route.process) and (route.case == "none" or route.case.split()[1] in sets[route.process])
    }


def check(processes: Processes, rows: Rows) -> list[str]:
    """Fill `agrees` of every row; the routes that disagree with the graph for a single adapter, run row by row."""
    path, references = processes.artifacts.folder / "scores.npy", dict[str, NDArray[np.float32]]()

    def scores(process: str, case: str, dtype: str) -> NDArray[np.float32] | None:
        done = processes.ask(process, "scores", case=case, context=_CHECKED_TOKENS, path=str(path), dtype=dtype)
        found: NDArray[np.float32] | None = np.load(path) if done is not None else None
        return found

    for case in dict.fromkeys(row.route.case for row in rows.values()):
        reference = scores(REFERENCE, case, "float32")
        if reference is not None:
            references[case] = reference
    for row in rows.values():
        found = scores(row.route.process, row.route.case, row.route.dtype)
        if found is not None and row.route.case in references:
            row.agrees = least_correlation(references[row.route.case], found)
    processes.close([REFERENCE])
    wrong = []
    for name, row in rows.items():
        process = PROCESSES[row.route.process]
        least = _PEERS_AGREE if process.is_peers else _GENERATORS_AGREE if process.kind == "generator" else _OURS_AGREE
        if row.agrees is not None and not row.agrees >= least:
            wrong.append(name)
            print(f"{name}: DISAGREES: a row's scores correlate {row.agrees:.4f} with those of its adapter", flush=True)
    return wrong


def least_correlation(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The least of the correlations of each row [V] of scores with what is expected, where it was found."""
    known = ~np.isnan(found)
    rows = zip(expected, found, known, strict=True)
    return min(float(np.corrcoef(one[where], other[where])[0, 1]) for one, other, where in rows)


def measure_steps(processes: Processes, rows: Rows, contexts: Sequence[int], rounds: int, steps: int) -> None:
    """Tokens per second of single steps after each context; peers, which have to read it, after the first alone."""

    def ask(context: int, row: Row) -> tuple[str, float] | None:
        process = PROCESSES[row.route.process]
        if process.is_peers and context != contexts[0]:
            return None
        count = steps if process.rows > 1 and not _is_single(row.route) else _SINGLE_STEPS * steps
        answer = processes.ask(
            row.route.process, "steps", case=row.route.case, context=context, count=count, dtype=row.route.dtype
        )
        return (f"steps@{context}", answer["rows"] / statistics.median(answer["seconds"])) if answer else None

    for number in range(rounds):
        for context in contexts:
            _turn(rows, number, rounds, partial(ask, context))


def measure_answers(processes: Processes, rows: Rows, rounds: int, prompt: int, new: int) -> None:
    """Tokens per second of as many whole answers as a batch has rows; other prompts in every round."""

    def ask(number: int, row: Row) -> tuple[str, float] | None:
        seed = 100 * number + list(rows.values()).index(row)
        answer = processes.ask(row.route.process, "answers", case=row.route.case, prompt=prompt, new=new, seed=seed)
        return ("answers", answer["tokens"] / answer["seconds"]) if answer else None

    for number in range(rounds):
        _turn(rows, number, rounds, partial(ask, number))


def _turn(rows: Rows, number: int, rounds: int, ask: Callable[[Row], tuple[str, float] | None]) -> None:
    """Ask for every route once; each round begins with another."""
    order = list(rows.values())
    start = number * len(order) // rounds
    for row in [*order[start:], *order[:start]]:
        found = ask(row)
        if found:
            row.speeds.setdefault(found[0], []).append(found[1])


def _is_single(route: Route) -> bool:
    """Whether a step takes one row: a peer's, where the rows have different adapters."""
    return PROCESSES[route.process].is_peers and route.case.startswith("16")
