"""A graph that answers at once, from what a row's memory holds: what is read, moved or kept wrongly changes an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import cast
from zlib import crc32

import numpy as np
from fedlora.errors import GraphError
from fedlora.family import DecoderShape
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.batching.fair_queue import FairQueue
from fedlora_serve.batching.kv_cache import KVCache, blocks_of
from fedlora_serve.batching.request import Request
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.scheduler import Scheduler
from fedlora_serve.batching.sequence import SequenceState
from fedlora_serve.text.sampling import Sampling
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.serve.batching.listening import CountedLease, Listener, counted

SAID = 256  # tokens that it says


def said(prompt: Sequence[int], count: int, adapter: LoadedAdapter | None = None) -> list[int]:
    """What a row says that has read all of its tokens, each in its place."""
    virtual = adapter.prefix[0, 0, :, 0].tolist() if adapter and adapter.prefix is not None else []
    tokens = [*virtual, *prompt]
    for _ in range(count):
        tokens.append(_next(tokens, adapter))
    return tokens[len(virtual) + len(prompt) :]


def _next(tokens: Sequence[float], adapter: LoadedAdapter | None) -> int:  # all of a row, virtual ones too
    content = np.asarray(tokens, np.float32).tobytes() + (adapter.digest.encode() if adapter else b"")
    return crc32(content) % SAID


def adapter_of(digest: str) -> LoadedAdapter:
    return LoadedAdapter(name=digest, digest=digest, number=1, values={}, rank=1, size_bytes=1, source=Path("none"))


def with_virtual(adapter: LoadedAdapter, shape: DecoderShape, count: int) -> LoadedAdapter:
    """The same with so many virtual tokens, which a graph that pretends reads as it does others."""
    heads = np.zeros((2 * shape.num_layers, shape.num_kv_heads, count, shape.head_dim), np.float32)
    heads += np.arange(1000, 1000 + count, dtype=np.float32)[:, None]
    return replace(adapter, prefix=heads)


class JoinedAdapters:
    """Counts the rows of each adapter."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    def join(self, adapter: LoadedAdapter) -> None:
        assert adapter.digest != "broken", "a mistake of our own"
        self.rows[adapter.digest] += 1

    def leave(self, adapter: LoadedAdapter) -> None:
        assert self.rows[adapter.digest] > 0
        self.rows[adapter.digest] -= 1


@dataclass
class PretendGraph:
    """A `RowGraph`, as hard to please as ONNX Runtime: the widest part must fit every row of a step."""

    kv_cache: KVCache
    vocab_size: int
    adapters: JoinedAdapters = field(default_factory=JoinedAdapters)
    steps: list[tuple[int, list[int]]] = field(default_factory=list)  # (first row, tokens that each one read)

    def step(self, begin: int, parts: Sequence[Part]) -> NDArray[np.float32]:
        width = max(len(part.tokens) for part in parts)
        if max(part.length for part in parts) + width > self.kv_cache.capacity:
            raise GraphError("the padded chunk does not fit in the KV cache capacity")
        scores = np.zeros((len(parts), self.vocab_size), np.float32)
        for row, part in enumerate(parts, begin):
            assert not part.adapter or self.adapters.rows[part.adapter.digest]
            end = part.length + len(part.tokens)
            assert self.kv_cache.blocks[row] >= blocks_of(end), "memory that nobody counted"
            buffers = self.kv_cache.of_rows(row, row + 1)
            for buffer in buffers:
                buffer[0, :, part.length : end] = np.asarray(part.tokens, np.float32)[:, None]
            for buffer in buffers:
                held = buffer[0, :, :end]
                assert (held == buffers[0][0, :1, :end, :1]).all(), "heads and layers that differ"
            scores[row - begin, _next(buffers[0][0, 0, :end, 0].tolist(), part.adapter)] = 1
        self.steps.append((begin, [len(part.tokens) for part in parts]))
        return scores


class PretendBatch:
    """A batch over a pretended graph, step by step, and the requests that wait for it."""

    def __init__(
        self, shape: DecoderShape, tokenizer: Tokenizer, *, rows: int, budget_blocks: int, prefill_tokens: int = 64,
        capacity_blocks: int = 16, look_s: float = 0.0,
    ) -> None:  # fmt: skip
        looks = count()  # at the clock: one passes `look_s`
        self.kv_cache = KVCache(shape, rows, min(capacity_blocks, budget_blocks))
        self.graph = PretendGraph(self.kv_cache, shape.vocab_size)
        self.waiting = FairQueue(capacity=1000)
        self.budget_blocks = budget_blocks
        self.scheduler = Scheduler(
            cast(RowGraph, self.graph),
            self.kv_cache,
            rows=rows,
            budget_blocks=budget_blocks,
            prefill_tokens=prefill_tokens,
            clock=lambda: next(looks) * look_s,
        )
        self._tokenizer, self._vocab_size = tokenizer, shape.vocab_size

    def ask(
        self, prompt: Sequence[int], count: int = 1, adapter: LoadedAdapter | None = None, *, share: str = "",
        **sampling: object,
    ) -> Listener:  # fmt: skip
        """A sequence of `count` tokens that waits to come in."""
        listener = Listener(lease=CountedLease(adapter) if adapter else None)
        wanted = Sampling(max_tokens=count, **sampling) if sampling else counted(count)  # type: ignore[arg-type]
        listener.request = Request(
            prompt=prompt, sampling=wanted, on_event=listener, adapter=listener.lease, share=share
        )
        self.waiting.append(
            SequenceState(
                listener.request,
                self._tokenizer,
                vocab_size=self._vocab_size,
                stop_token_ids=(),
                limit=self.kv_cache.capacity,
            )
        )
        return listener

    def step(self) -> None:
        """Let those in for whom there is room, and go one step further."""
        self.waiting.put_back(self.scheduler.preempted)
        self.scheduler.admit(self.waiting)
        self.scheduler.step()
        assert self.scheduler.blocks.used_blocks <= self.budget_blocks

    def finish(self, most_steps: int = 5000) -> int:
        """How many steps it takes until everybody has ended; nothing is left then but prefixes."""
        for steps in range(most_steps):
            if not (self.waiting or self.scheduler.sequences or self.scheduler.preempted):
                assert not any(self.kv_cache.blocks)
                assert not self.graph.adapters.rows.total()
                return steps
            self.step()
        raise AssertionError(f"no end within {most_steps} steps")
