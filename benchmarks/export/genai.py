"""onnxruntime-genai's own loop: its model, its cache, its greedy search."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.engine import MAX_LENGTH, ExportJob

_ADAPTER = "adapter"


class GenaiEngine:
    """A model of genai's builder; `adapter` is a file for the inputs that Olive made."""

    def __init__(self, job: ExportJob) -> None:
        self._genai: Any = import_module("onnxruntime_genai")
        config = self._genai.Config(job.model)
        options = {"intra_op_num_threads": job.threads, "log_severity_level": 3}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        self._adapters = self._genai.Adapters(self._model) if job.adapter else None
        if self._adapters:
            self._adapters.load(job.adapter, _ADAPTER)
        self._parameters = self._genai.GeneratorParams(self._model)
        # A shortest length that is never reached keeps the end of text from being chosen.
        self._parameters.set_search_options(max_length=MAX_LENGTH, min_length=MAX_LENGTH, do_sample=False, batch_size=1)
        self.reset()

    def reset(self) -> None:
        self._generator = self._genai.Generator(self._model, self._parameters)
        if self._adapters:
            self._generator.set_active_adapter(self._adapters, _ADAPTER)

    def prompt(self, tokens: NDArray[np.int64]) -> None:
        self._generator.append_tokens(tokens.astype(np.int32))
        self._logits = np.asarray(self._generator.get_logits(), np.float32).reshape(
            -1
        )  # later they are the next token's
        self._generator.generate_next_token()  # computes nothing yet: it chooses from the prompt's logits

    def step(self) -> None:
        self._generator.generate_next_token()

    def rewind(self, length: int) -> None:
        self._generator.rewind_to(length)

    def logits(self) -> NDArray[np.float32]:
        """Those of the last prompt: a step's are not asked for."""
        return self._logits
