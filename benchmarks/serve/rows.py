"""Steps of the service's own: `RowGraph` with the graph `kernel`, or `rows`, and an adapter in each row."""

# n rows, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from fedlora.base.pack import open_pack
from fedlora_serve.adapters.loading import LoadedAdapter, load_adapter
from fedlora_serve.batching.kv_cache import KVCache, blocks_of
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.row_session import open_rows
from numpy.typing import NDArray

from serve.engine import Dtype, ServeJob


class RowsEngine:
    """The rows of a `RowGraph`, all of one length."""

    mixes = True

    def __init__(self, job: ServeJob) -> None:
        self.max_rows = job.rows
        self.base = open_pack(Path(job.model))
        opened = open_rows(self.base, threads=job.threads)
        if opened.manifest.profile != job.profile:
            raise RuntimeError(
                f"{job.model}: its graph is of profile {opened.manifest.profile}, expected {job.profile}"
            )
        kv_cache = KVCache(self.base.shape, job.rows, blocks_of(job.capacity))
        for buffer in kv_cache.of_rows(0, job.rows):
            buffer[:] = 0.01  # memory that was never written would be one page, which a cache holds
        self.graph = RowGraph(opened.session, self.base.shape, kv_cache, opened.adapters)
        self.lays_out_adapters = opened.lays_out_adapters
        self._version = cache(self._read_version)
        self.adapters: list[LoadedAdapter | None] = []
        self._length, self._tokens = 0, np.zeros(0, np.int64)

    def use(self, adapters: Sequence[str], dtype: Dtype) -> None:
        for adapter in self.adapters:
            if adapter:
                self.graph.adapters.leave(adapter)
        self.adapters = [self._version(path, dtype) if path else None for path in adapters]
        for adapter in self.adapters:
            if adapter:
                self.graph.adapters.join(adapter)

    def start(self, prompts: NDArray[np.int64]) -> None:
        self._length = 0
        self._read(prompts)

    def step(self) -> None:
        self._read(self._tokens[:, None])

    def follow(self, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self.step()

    def at(self, context: int) -> None:
        self._length = context
        self._tokens = np.full(len(self.adapters), 11)

    def scores(self) -> NDArray[np.float32]:
        return self._scores

    def _read_version(self, path: str, dtype: Dtype) -> LoadedAdapter:
        adapter = load_adapter(Path(path), self.base, layout=dtype if self.lays_out_adapters else None)
        return replace(adapter, digest=f"{adapter.digest}-{dtype}")

    def _read(self, tokens: NDArray[np.int64]) -> None:
        parts = [Part(row, self._length, adapter) for row, adapter in zip(tokens.tolist(), self.adapters, strict=True)]
        self._scores = self.graph.step(0, parts)
        self._length += tokens.shape[1]
        self._tokens = self._scores.argmax(1)
