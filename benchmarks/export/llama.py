"""llama.cpp through llama-cpp-python's plain bindings."""

# T tokens, V vocabulary

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.engine import MAX_LENGTH, ExportJob


class LlamaEngine:
    """A GGUF model with one sequence; `adapter` is a GGUF file too. Loading repacks the weights for the machine."""

    def __init__(self, job: ExportJob) -> None:
        self._llama: Any = import_module("llama_cpp")
        self._quiet = self._llama.llama_log_callback(lambda level, text, data: None)
        self._llama.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._llama.llama_backend_init()
        self._model = self._llama.llama_load_model_from_file(
            job.model.encode(), self._llama.llama_model_default_params()
        )
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch = MAX_LENGTH, MAX_LENGTH
        parameters.n_threads = parameters.n_threads_batch = job.threads
        self._context = self._llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not load {job.model}")
        self._vocab_size = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self._model))
        if job.adapter:
            self._take(job.adapter)
        self._token = 0

    def reset(self) -> None:
        self.rewind(0)

    def prompt(self, tokens: NDArray[np.int64]) -> None:
        ids = (self._llama.llama_token * len(tokens))(*tokens.tolist())
        if self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(ids, len(tokens))):
            raise RuntimeError("llama.cpp does not decode")
        self._token = int(self.logits().argmax())

    def step(self) -> None:
        self.prompt(np.array([self._token]))

    def rewind(self, length: int) -> None:
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_seq_rm(memory, 0, length, -1)

    def logits(self) -> NDArray[np.float32]:
        pointer = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,))

    def _take(self, path: str) -> None:
        adapter = self._llama.llama_adapter_lora_init(self._model, path.encode())
        if not adapter:
            raise RuntimeError(f"llama.cpp does not load {path}")
        one = (self._llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        self._llama.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))
