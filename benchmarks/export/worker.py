"""The process of one engine: it loads what argv[1] says, then measures as the lines of its standard input ask.

Each answer is a line of JSON. The clock of all engines is here; seconds are those of single calls: of the processor with
one thread, so that whatever else runs on the machine counts less, and of the wall with more, whose threads spin as they
wait.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, cast

from export.engine import Engine, ExportJob, SwappingEngine, parse_job, prompt_tokens
from harness.worker import answer_requests, resident_mb


def main() -> None:
    job = parse_job(sys.argv[1])
    answer_requests(lambda: _Bench(job))


class _Bench:
    """The measurements of one engine."""

    def __init__(self, job: ExportJob) -> None:
        self._job = job
        self._clock = time.process_time if job.threads == 1 else time.perf_counter
        self.load_s = self._timed(self._load)
        self._read = 0  # tokens of the prompt that the engine holds

    def _load(self) -> None:
        self._engine = _engine(self._job)

    def prefill(self, length: int, repeats: int = 1) -> dict[str, Any]:
        """Seconds to read a prompt from the start; of several the first, in which buffers are made, is left out."""
        seconds = []
        for _ in range(repeats):
            self._engine.reset()
            seconds.append(self._timed(lambda: self._engine.prompt(prompt_tokens(length))))
        self._read = length
        return {"seconds": seconds[1:] or seconds}

    def decode(self, context: int, steps: int) -> dict[str, Any]:
        """Seconds of each step after `context` tokens; the first, in which buffers are made, is left out."""
        self._at(context)
        self._engine.step()
        return {"seconds": [self._timed(self._engine.step) for _ in range(steps)]}

    def swap(self, context: int, steps: int) -> dict[str, Any]:
        """Seconds of steps, and of steps before which the adapter was changed, in turns."""
        self._at(context)
        self._engine.step()
        plain, swapped = [], []
        for _ in range(steps):
            plain.append(self._timed(self._engine.step))
            swapped.append(self._timed(self._swapped_step))
        return {"seconds": plain, "swapped": swapped}

    def scores(self, context: int) -> dict[str, Any]:
        """The logits after a prompt, to see that all compute the same model."""
        self._engine.reset()
        self._engine.prompt(prompt_tokens(context))
        self._read = context
        return {"logits": [round(float(value), 4) for value in self._engine.logits()]}

    def memory(self) -> dict[str, Any]:
        return dict(resident_mb())

    def _at(self, context: int) -> None:
        if self._read < context:
            self._engine.reset()
            self._engine.prompt(prompt_tokens(context))
            self._read = context
        else:
            self._read = context
            self._engine.rewind(context)

    def _timed(self, call: Callable[[], None]) -> float:
        started = self._clock()
        call()
        return self._clock() - started

    def _swapped_step(self) -> None:
        cast(SwappingEngine, self._engine).swap()
        self._engine.step()


def _engine(job: ExportJob) -> Engine:
    if job.kind == "onnxruntime":
        from export.ort import OrtEngine

        return OrtEngine(job)
    if job.kind == "genai":
        from export.genai import GenaiEngine

        return GenaiEngine(job)
    from export.llama import LlamaEngine

    return LlamaEngine(job)


if __name__ == "__main__":
    main()
