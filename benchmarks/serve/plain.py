"""A graph whose rows share an adapter, in a session: `base`, the denominator; `fast` and `compat` for runs one by one."""

# n rows, T tokens, V vocabulary, K key/value heads, D head size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import open_pack
from fedlora.exported.inputs import input_values, joined_values
from fedlora.exported.profiles import Profile, graph_name
from fedlora.peft.for_base import adapter_of
from fedlora_serve.session import open_graph
from numpy.typing import NDArray

from serve.engine import Dtype, ServeJob

_KEEP = "logits_to_keep"
Values = Mapping[str, NDArray[Any]]


class PlainEngine:
    """Past and present are one buffer, as in the service; all is bound once and again where it changes."""

    mixes = False

    def __init__(self, job: ServeJob) -> None:
        self.max_rows = job.rows
        self._base, self._profile = open_pack(Path(job.model)), cast(Profile, job.profile)
        self._shape = self._base.shape
        _, self._session = open_graph(self._base, [graph_name(self._shape, self._profile)], threads=job.threads)
        size = (job.rows, self._shape.num_kv_heads, job.capacity, self._shape.head_dim)
        self._cache = [np.full(size, 0.01, np.float32) for _ in range(2 * self._shape.num_layers)]
        self._row = np.zeros((job.rows, 1, self._shape.vocab_size), np.float32)  # where a step leaves its scores
        self._values = cache(self._read)
        self._adapter: str | None = None
        self._bind(())

    def use(self, adapters: Sequence[str], dtype: Dtype) -> None:
        if len(adapters) != self.max_rows or len(set(adapters)) != 1:
            raise ValueError(f"all {self.max_rows} rows of this graph have one adapter")
        if adapters[0] != self._adapter:
            self._adapter = adapters[0]
            self._bind(self._values(adapters[0]).items() if adapters[0] else ())

    def start(self, prompts: NDArray[np.int64]) -> None:
        self._length = 0
        self._read_tokens(prompts)

    def step(self) -> None:
        self._read_tokens(self._tokens[:, None])

    def follow(self, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self.step()

    def at(self, context: int) -> None:
        self._length, self._tokens = context, np.full(self.max_rows, 11)

    def scores(self) -> NDArray[np.float32]:
        return self._row[:, 0]

    def _read_tokens(self, tokens: NDArray[np.int64]) -> None:
        self._length += tokens.shape[1]
        mask = np.ones((self.max_rows, self._length), np.int64)
        for name, value in {"input_ids": np.ascontiguousarray(tokens), "attention_mask": mask}.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        self._session.run_with_iobinding(self._binding)
        self._tokens = self._row[:, 0].argmax(1)

    def _bind(self, adapter_inputs: Any) -> None:
        self._binding = self._session.io_binding()
        names = [f"{layer}.{kind}" for layer in range(self._shape.num_layers) for kind in ("key", "value")]
        for name, buffer in zip(names, self._cache, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            self._binding.bind_ortvalue_output(f"present.{name}", value)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._row))
        self._last = np.ones(1, np.int64)  # what an OrtValue points to must outlive it
        for name, value in (*adapter_inputs, (_KEEP, self._last)):
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))

    def _read(self, path: str) -> Values:
        values = input_values(adapter_of(Path(path), self._base)[0])
        if self._profile == "fast":
            return joined_values(values, self._shape.linear_modules(), self._shape.linear_groups())
        return values
