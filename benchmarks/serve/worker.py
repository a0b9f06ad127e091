"""The process of one engine of `bench_serve.py`: it loads what argv[1] says, then measures as standard input asks.

Each answer is a line of JSON. Seconds are the processor's with one thread, the wall's with more; see serve/engine.py.
"""

# V vocabulary

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from harness.worker import Bench, answer_requests
from serve.engine import BatchEngine, Dtype, ServeJob, adapters_of, clock_of, parse_serve_job, row_prompts

_STEPS_AT_ONCE = 32  # then a row has so many tokens more, and begins again


def main() -> None:
    job = parse_serve_job(sys.argv[1])
    answer_requests(lambda: _bench(job))


def _bench(job: ServeJob) -> Bench:
    if job.kind == "generator":
        from serve.generator import GeneratorBench

        return GeneratorBench(job)
    if job.kind == "llamacpp-server":
        from serve.llama_server import ServerBench

        return ServerBench(job)
    return EngineBench(job)


class EngineBench:
    """The measurements of one engine that is driven step by step."""

    def __init__(self, job: ServeJob) -> None:
        self._job, self._clock = job, clock_of(job.threads)
        started = self._clock()
        self._engine = _engine(job)
        self.load_s = self._clock() - started

    def steps(self, case: str, context: int, count: int, dtype: Dtype = "float32") -> dict[str, Any]:
        """Seconds of single steps after `context` tokens, or a few more, without the first, which makes buffers.

        And the rows of each step.
        """
        rows, adapters = next(self._groups(case))
        self._engine.use(adapters, dtype)
        seconds = []
        for number in range(count):
            if number % _STEPS_AT_ONCE == 0:
                self._engine.at(context)
                self._engine.step()
            seconds.append(self._timed(self._engine.step))
        return {"seconds": seconds, "rows": len(rows)}

    def scores(self, case: str, context: int, path: str, dtype: Dtype = "float32") -> dict[str, Any]:
        """Write the scores [ROWS, V] after the prompts of all rows and a step, as .npy: is it one model?"""
        prompts, found = row_prompts(self._job.vocab_size, context), []
        for rows, adapters in self._groups(case):
            self._engine.use(adapters, dtype)
            self._engine.start(prompts[rows, :-1])
            self._engine.follow(prompts[rows, -1])
            found.append(self._engine.scores().copy())
        np.save(path, np.concatenate(found))
        return {}

    def answers(self, case: str, prompt: int, new: int, seed: int) -> dict[str, Any]:
        """Seconds for `new` tokens after a prompt in each of all rows, those that no batch holds one after another."""
        prompts, groups = row_prompts(self._job.vocab_size, prompt, seed), list(self._groups(case))

        def run() -> None:
            for rows, adapters in groups:
                self._engine.use(adapters, "float32")
                self._engine.start(prompts[rows])
                for _ in range(new - 1):
                    self._engine.step()

        return {"seconds": self._timed(run), "tokens": len(prompts) * new}

    def swap(self, case: str, rows: int, context: int, count: int) -> dict[str, Any]:
        """Seconds of steps, and of steps before which a row took another adapter of the store; see serve/swap.py."""
        from serve.rows import RowsEngine
        from serve.swap import measure_swap

        adapters = adapters_of(self._job, case)
        return measure_swap(cast(RowsEngine, self._engine), adapters, rows, context, count, self._clock)

    def _groups(self, case: str) -> Iterator[tuple[list[int], list[str]]]:
        """The rows of each batch, and their adapters: all at once, where the engine can do that."""
        adapters, engine = adapters_of(self._job, case), self._engine
        if engine.max_rows == len(adapters) and (engine.mixes or len(set(adapters)) == 1):
            yield list(range(len(adapters))), adapters
        else:
            yield from (([row], [adapter]) for row, adapter in enumerate(adapters))

    def _timed(self, call: Callable[[], None]) -> float:
        started = self._clock()
        call()
        return self._clock() - started


def _engine(job: ServeJob) -> BatchEngine:
    if job.kind == "rows":
        from serve.rows import RowsEngine

        return RowsEngine(job)
    if job.kind == "plain":
        from serve.plain import PlainEngine

        return PlainEngine(job)
    if job.kind == "genai":
        from serve.genai import GenaiBatch

        return GenaiBatch(job)
    from serve.llama import LlamaBatch

    return LlamaBatch(job)


if __name__ == "__main__":
    main()
