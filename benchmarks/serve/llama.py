"""llama.cpp through llama-cpp-python's plain bindings, with several sequences in one batch."""

# n rows, T tokens, V vocabulary

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine import Dtype, ServeJob

_PART = 512  # tokens of a prompt in one call


class LlamaBatch:
    """A GGUF model. The adapters of a context are those of all its sequences: rows do not mix."""

    mixes = False

    def __init__(self, job: ServeJob) -> None:
        self.max_rows = job.rows
        self._llama: Any = import_module("llama_cpp")
        llama = self._llama
        self._quiet = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model = llama.llama_load_model_from_file(job.model.encode(), llama.llama_model_default_params())
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = job.rows * job.capacity, job.rows
        parameters.n_batch = parameters.n_ubatch = _PART
        parameters.n_threads = parameters.n_threads_batch = job.threads
        parameters.kv_unified = False  # each sequence attends to its own cells only
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not load {job.model}")
        self._adapters = {path: self._load(path) for path in sorted({p for s in job.adapters.values() for p in s})}
        self._batch = llama.llama_batch_init(_PART, 0, 1)
        self._vocab_size = job.vocab_size
        self._rows, self._adapter = 0, ""
        self._held = (0, 0)  # rows and tokens of each, for `at`

    def use(self, adapters: Sequence[str], dtype: Dtype) -> None:
        self._rows = len(adapters)
        if adapters[0] != self._adapter:
            self._adapter = adapters[0]
            chosen = [self._adapters[adapters[0]]] if adapters[0] else []
            array = (self._llama.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
            scales = (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
            self._llama.llama_set_adapters_lora(self._context, array, len(chosen), scales)

    def start(self, prompts: NDArray[np.int64]) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        rows, length = prompts.shape
        self._held = (0, 0)
        self._length, self._scores = 0, np.zeros((rows, self._vocab_size), np.float32)
        at_once = max(1, _PART // length)
        for first in range(0, rows, at_once):
            part = range(first, min(rows, first + at_once))
            for begin in range(0, length, _PART):
                self._decode(part, prompts[part.start : part.stop, begin : begin + _PART], begin)
        self._length, self._tokens = length, self._scores.argmax(1)

    def step(self) -> None:
        self._decode(range(self._rows), self._tokens[:, None], self._length)
        self._length, self._tokens = self._length + 1, self._scores.argmax(1)

    def follow(self, tokens: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self.step()

    def at(self, context: int) -> None:
        if self._held != (self._rows, context):
            self.start(np.random.default_rng(2).integers(10, self._vocab_size, (self._rows, context)))
            self._held = (self._rows, context)
        for row in range(self._rows):  # what another adapter wrote before is as long to read
            self._llama.llama_memory_seq_rm(self._llama.llama_get_memory(self._context), row, context, -1)
        self._length = context

    def scores(self) -> NDArray[np.float32]:
        return self._scores

    def _decode(self, rows: range, tokens: NDArray[np.int64], position: int) -> None:
        """Read `tokens` [n, T] of some rows; the last one's scores of each are copied out."""
        batch, length = self._batch, tokens.shape[1]
        batch.n_tokens = tokens.size
        for place, token in enumerate(tokens.ravel().tolist()):
            batch.token[place], batch.pos[place] = token, position + place % length
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, rows[place // length]
            batch.logits[place] = place % length == length - 1
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp does not decode")
        for row in range(len(rows)):
            pointer = self._llama.llama_get_logits_ith(self._context, row * length + length - 1)
            self._scores[rows[row]] = np.ctypeslib.as_array(pointer, (self._vocab_size,))

    def _load(self, path: str) -> Any:
        adapter = self._llama.llama_adapter_lora_init(self._model, path.encode())
        if not adapter:
            raise RuntimeError(f"llama.cpp does not load {path}")
        return adapter
