"""onnxruntime-genai's own loop with several sequences in one generator, which have one adapter together."""

# n rows, T tokens, V vocabulary

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine import Dtype, ServeJob


class GenaiBatch:
    """A model of genai's builder. `set_active_adapter` is of a generator, not of a sequence: rows do not mix."""

    mixes = False

    def __init__(self, job: ServeJob) -> None:
        self.max_rows, self._capacity = job.rows, job.capacity
        self._genai: Any = import_module("onnxruntime_genai")
        config = self._genai.Config(job.model)
        options = {"intra_op_num_threads": job.threads, "log_severity_level": 3}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        paths = sorted({path for paths in job.adapters.values() for path in paths})
        if paths:  # a model without adapter inputs takes none
            self._adapters = self._genai.Adapters(self._model)
        for path in paths:
            self._adapters.load(path, path)
        self._vocab_size = job.vocab_size
        self._now: tuple[str, int] = ("", 0)

    def use(self, adapters: Sequence[str], dtype: Dtype) -> None:
        self._now = (adapters[0], len(adapters))

    def start(self, prompts: NDArray[np.int64]) -> None:
        adapter, rows = self._now
        self._prompts = prompts
        parameters = self._genai.GeneratorParams(self._model)
        # A shortest length that is never reached keeps the end of text from being chosen.
        length = self._capacity
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=rows)
        self._generator = self._genai.Generator(self._model, parameters)
        if adapter:
            self._generator.set_active_adapter(self._adapters, adapter)
        self._generator.append_tokens(prompts.astype(np.int32))
        self._scores = np.asarray(self._generator.get_logits(), np.float32).reshape(rows, -1, self._vocab_size)[:, -1]
        self._generator.generate_next_token()  # computes nothing yet: it chooses from the prompt's scores

    def step(self) -> None:
        self._generator.generate_next_token()

    def follow(self, tokens: NDArray[np.int64]) -> None:
        self.start(np.concatenate([self._prompts, tokens[:, None]], 1))  # several sequences take no more tokens

    def at(self, context: int) -> None:
        prompts = np.random.default_rng(2).integers(10, self._vocab_size, (self._now[1], context))
        self.start(prompts)  # several sequences cannot be rewound

    def scores(self) -> NDArray[np.float32]:
        return self._scores
