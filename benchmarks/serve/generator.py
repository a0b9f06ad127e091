"""Whole answers of the service's generator: prompts, steps, choosing and text, as `BatchEngine.submit` gives them."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.errors import AdapterStoreFullError
from fedlora.row_lora.layout import LayoutDtype
from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.engine import BatchEngine
from fedlora_serve.batching.request import Event, Finished, Piece, Request
from fedlora_serve.text.sampling import ChosenToken, Sampling

from harness.popularity import WORKLOADS
from serve.engine import ROWS, Dtype, ServeJob, adapters_of, clock_of, row_prompts
from serve.swap import load_times

_LIKELIEST = 20  # tokens whose log-probabilities a request can have
_SETS = ("r8", "r16")
_CACHE_BYTES, _STORE_BYTES = 1 << 30, 8 << 30


@dataclass(slots=True, eq=False)
class Asked:
    """A request that was made, and when its text came."""

    asked_s: float
    finished: queue.SimpleQueue[Asked]
    came_s: list[float] = field(default_factory=list)
    tokens: list[ChosenToken] = field(default_factory=list)  # with log-probabilities, where they were wanted
    end: Finished | None = None

    def on_event(self, event: Event) -> None:
        if isinstance(event, Piece):
            self.came_s.append(time.perf_counter())
            self.tokens += event.tokens
        else:
            self.end = event
            self.finished.put(self)


class GeneratorBench:
    """A generator with its adapters in a store."""

    def __init__(self, job: ServeJob) -> None:
        started = time.perf_counter()
        self._job = job
        self._generator = BatchEngine(
            Path(job.model), rows=job.rows, threads=job.threads, cache_budget_bytes=_CACHE_BYTES, queue=1024
        )
        self.load_s = time.perf_counter() - started
        self._store = self._new_store(_STORE_BYTES)
        for name in _SETS:
            for path in job.adapters[name]:
                self._store.load(path.lstrip("/"), Path(path))
        self._seed = 0
        self._finished: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def answers(self, case: str, prompt: int, new: int, seed: int) -> dict[str, Any]:
        """Seconds of ROWS requests at once, until the last one has ended; one row takes them one after another."""
        clock, leases = clock_of(self._job.threads), self._leases(case)
        started = clock()
        asked = self._ask(leases, prompt, new, seed)
        for _ in asked:
            self._next_finished()
        return {"seconds": clock() - started, "tokens": len(asked) * new}

    def scores(self, case: str, context: int, path: str, dtype: Dtype) -> dict[str, Any]:
        """Write the log-probabilities [ROWS, V] of the likeliest tokens after the prompts, as .npy; NaN for all others."""
        found = np.full((ROWS, self._job.vocab_size), np.nan, np.float32)
        asked = self._ask(self._leases(case), context, 1, 0, logprobs=_LIKELIEST)
        for _ in asked:
            self._next_finished()
        for row, each in enumerate(asked):
            for token, logprob in each.tokens[0].top:
                found[row, token] = logprob
        np.save(path, found)
        return {}

    def service(self, at_once: int, count: int, prompt: int, new: int) -> dict[str, Any]:
        """What `count` requests wait when `at_once` are on their way at any time, each with one of ROWS adapters."""
        names = [path.lstrip("/") for path in self._job.adapters["r8"]]
        chosen = np.random.default_rng([5, at_once]).integers(0, len(names), count)
        return self._closed_loop(self._store, [names[which] for which in chosen], at_once, prompt, new)

    def resident(
        self, folder: str, adapters: int, workload: str, share: float, count: int, prompt: int, new: int
    ) -> dict[str, Any]:
        """A store of so many adapters with memory for a share of them, under a workload of `count` requests."""
        paths = [Path(folder) / str(number) for number in range(adapters)]
        size_bytes = self._new_store(_STORE_BYTES).load("0", paths[0]).size_bytes
        store = self._new_store(max(1, int(adapters * share)) * size_bytes)
        started = time.perf_counter()
        for path in reversed(paths):  # what a zipf workload asks for most comes last, and stays where there is no room
            store.load(path.name, path)
        load_s = time.perf_counter() - started
        chosen = WORKLOADS[workload](adapters, count, np.random.default_rng([6, adapters]))
        found = self._closed_loop(store, [paths[which].name for which in chosen], self._job.rows, prompt, new)
        stats = store.stats()
        return found | {
            "hit_rate": stats.hits / count, "resident": stats.resident, "load_s": load_s,
            "resident_mb": stats.resident_bytes / 1e6,
        }  # fmt: skip

    def load(self, case: str, repeats: int) -> dict[str, Any]:
        """Seconds of each part of loading one adapter."""
        path, lays_out = Path(adapters_of(self._job, case)[0]), self._generator.lays_out_adapters
        return load_times(self._generator.base, path, lays_out=lays_out, repeats=repeats)

    def _leases(self, case: str) -> list[Lease | None]:
        return [self._store.lease(path.lstrip("/")) if path else None for path in adapters_of(self._job, case)]

    def _new_store(self, budget_bytes: int) -> AdapterStore:
        layout: LayoutDtype | None = "float32" if self._generator.lays_out_adapters else None
        return AdapterStore(self._generator.base, budget_bytes=budget_bytes, layout=layout)

    def _closed_loop(
        self, store: AdapterStore, names: Sequence[str], at_once: int, prompt: int, new: int
    ) -> dict[str, Any]:
        """As one request ends the next one begins. It waits where what runs has all of the store's memory."""
        waiting, running, done = deque(names), 0, list[Asked]()
        started = wanted_s = time.perf_counter()
        while waiting or running:
            while waiting and running < at_once:
                try:
                    lease = store.lease(waiting[0])
                except AdapterStoreFullError:
                    if not running:
                        raise
                    break
                waiting.popleft()
                self._ask([lease], prompt, new, None, wanted_s=wanted_s)
                running += 1
                wanted_s = time.perf_counter()
            done.append(self._next_finished())
            if running == at_once:  # else the next one waits for memory since it was wanted
                wanted_s = time.perf_counter()
            running -= 1
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds, "tokens": len(names) * new,
            "first_s": [each.came_s[0] - each.asked_s for each in done],
            "gaps_s": [float(gap) for each in done for gap in np.diff(each.came_s)],
        }  # fmt: skip

    def _ask(
        self,
        leases: Sequence[Lease | None],
        prompt: int,
        new: int,
        seed: int | None,
        *,
        wanted_s: float | None = None,
        logprobs: int | None = None,
    ) -> list[Asked]:
        """Submit a request for each lease; no two of them begin alike, so that none finds its prompt read already."""
        asked = []
        for lease, tokens in zip(leases, self._prompts(prompt, seed), strict=False):
            each = Asked(wanted_s or time.perf_counter(), self._finished)
            sampling = Sampling(max_tokens=new, ignore_eos=True, logprobs=logprobs)
            self._generator.submit(Request(prompt=tokens, sampling=sampling, on_event=each.on_event, adapter=lease))
            asked.append(each)
        return asked

    def _prompts(self, length: int, seed: int | None) -> Iterator[list[int]]:
        if seed is None:
            self._seed += 1
            seed = 1_000_000 + self._seed
        yield from row_prompts(self._job.vocab_size, length, seed).tolist()

    def _next_finished(self) -> Asked:
        each = self._finished.get()
        if each.end is None or each.end.reason != "length":
            raise RuntimeError(f"an answer ended with {each.end}")
        return each
