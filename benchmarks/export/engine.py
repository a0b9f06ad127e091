"""What every engine of `bench_export.py` can do, and how it is asked for. Peers' interpreters import it too: numpy only."""

# T tokens, V vocabulary

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_LENGTH = 1152  # of every cache: the longest context, and room for its steps
Kind = Literal["onnxruntime", "genai", "llamacpp"]


class Engine(Protocol):
    """A loaded model with one sequence. It chooses the likeliest token; all of them copy out one row of logits to do so."""

    def reset(self) -> None:
        """Forget every token."""

    def prompt(self, tokens: NDArray[np.int64]) -> None:
        """Read `tokens` [T] in one call, and choose the next."""

    def step(self) -> None:
        """Read the token that was chosen last, and choose the next."""

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def logits(self) -> NDArray[np.float32]:
        """The scores [V] behind the last choice."""


class SwappingEngine(Engine, Protocol):
    """An engine that changes its adapter within a sequence: a session of ours."""

    def swap(self) -> None:
        """Take another adapter of the same rank for the tokens that follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """One engine, as it is handed to its process."""

    kind: Kind
    model: str  # the graph, genai's folder or the GGUF file
    threads: int
    head_dim: int
    rank: int = 0  # of the adapter; 0: none
    adapter: str = ""  # where the engine reads adapters from files
    shared_cache: bool = True  # one buffer is past and present; else the cache grows by copies

    def text(self) -> str:
        return json.dumps(asdict(self))


def parse_job(text: str) -> ExportJob:
    values: Mapping[str, Any] = json.loads(text)
    return ExportJob(**values)


def prompt_tokens(length: int) -> NDArray[np.int64]:
    """The first `length` tokens of the one text that all of them read."""
    return np.random.default_rng(1).integers(10, 32_000, MAX_LENGTH)[:length]
