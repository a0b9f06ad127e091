"""What every engine of `bench_serve.py` can do, and how it is asked for. Peers' interpreters import it too: numpy only."""

# n rows, T tokens, V vocabulary

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

ROWS = 16
Kind = Literal["rows", "plain", "genai", "llamacpp", "llamacpp-server", "generator"]
Dtype = Literal["float32", "float16"]  # of adapters, where an engine has the choice


class BatchEngine(Protocol):
    """A loaded model with up to `max_rows` sequences; it chooses the likeliest token of each."""

    max_rows: int
    mixes: bool  # rows of one step may have different adapters

    def use(self, adapters: Sequence[str], dtype: Dtype) -> None:
        """From now on there is a row for each of `adapters`, which is a path, or empty for none."""

    def start(self, prompts: NDArray[np.int64]) -> None:
        """Forget every token, read `prompts` [n, T], and choose the next of each row."""

    def step(self) -> None:
        """Read the tokens that were chosen last, one a row, and choose the next ones."""

    def follow(self, tokens: NDArray[np.int64]) -> None:
        """Read these tokens [n] after `start`, not those that were chosen."""

    def at(self, context: int) -> None:
        """Be where each row has so many tokens, whatever they are."""

    def scores(self) -> NDArray[np.float32]:
        """The scores [n, V] after `start` or `follow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeJob:
    """One engine, as it is handed to its process."""

    kind: Kind
    model: str  # the folder of the pack, genai's folder or the GGUF file
    threads: int
    capacity: int  # tokens of each row: the longest context, and room for its steps
    vocab_size: int
    rows: int = ROWS  # that it can have
    profile: str = ""  # of ours
    adapters: Mapping[str, Sequence[str]] = field(default_factory=dict)  # {set: ROWS of them}

    def text(self) -> str:
        return json.dumps(asdict(self))


def parse_serve_job(text: str) -> ServeJob:
    values: Mapping[str, Any] = json.loads(text)
    return ServeJob(**values)


def adapters_of(job: ServeJob, case: str) -> list[str]:
    """The adapter of each row: "none"; "one r8", the first of the set r8 in all rows; "16 r8", each its own."""
    if case == "none":
        return [""] * ROWS
    count, name = case.split(" ", 1)
    adapters = list(job.adapters[name])
    return [adapters[0]] * ROWS if count == "one" else adapters


def row_prompts(vocab_size: int, length: int, seed: int = 0) -> NDArray[np.int64]:  # [ROWS, T]
    """A prompt for each row, all different; another seed gives others."""
    return np.random.default_rng([seed, 1]).integers(10, vocab_size, (ROWS, length))


def clock_of(threads: int) -> Callable[[], float]:
    """The processor's time of one thread, so that what else runs here counts less; the wall's of more, which spin."""
    return time.process_time if threads == 1 else time.perf_counter
