"""One step of the model over some neighbouring rows of the batch, each as long as it is, each with its adapter."""

# n rows of the step, T tokens of the longest part, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from fedlora.errors import FedloraError, GraphError
from fedlora.family import DecoderShape
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.batching.kv_cache import KVCache
from fedlora_serve.batching.rows import RowAdapters
from fedlora_serve.step_watch import StepWatch

_MAX_BINDINGS = 512  # of 16 rows there are 136


@dataclass(frozen=True, slots=True)
class Part:
    """What a row reads in a step: `tokens` after the `length` that it has; none of them where it only stands between."""

    tokens: Sequence[int]
    length: int
    adapter: LoadedAdapter | None


class RowGraph:
    """A graph whose rows are independent (`decoder.kernel.onnx`, `decoder.rows.onnx`), with everything in its place."""

    def __init__(
        self,
        session: ort.InferenceSession,
        shape: DecoderShape,
        kv_cache: KVCache,
        adapters: RowAdapters,
        watch: StepWatch | None = None,
    ) -> None:
        self._session, self._shape, self._kv_cache = session, shape, kv_cache
        self._watch = watch or StepWatch()
        self.adapters = adapters
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._scores = np.zeros((len(kv_cache.blocks), 1, shape.vocab_size), np.float32)

    def step(self, begin: int, parts: Sequence[Part]) -> NDArray[np.float32]:  # [n, V]
        """Read the parts of the rows from `begin` on; the scores of what follows each, until the next step.

        Those of a row that read nothing mean nothing. Raises GraphError, and what the watch raises.
        """
        new = [len(part.tokens) for part in parts]
        ids = np.zeros((len(parts), max(new)), np.int64)
        for row, part in enumerate(parts):
            ids[row, : new[row]] = part.tokens
        lengths = [max(part.length + count, 1) for part, count in zip(parts, new, strict=True)]
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "lengths": np.array(lengths, np.int32),
            "new_tokens": np.array(new, np.int32),
            **self.adapters.feeds([part.adapter for part in parts]),
        }
        binding = self._binding(begin, len(parts))
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        try:
            with self._watch.step(ids.size) as options:
                self._session.run_with_iobinding(binding, options)
        except FedloraError:  # the step did not end
            raise
        except Exception as error:  # the runtime raises its own kinds, which share no base
            raise GraphError(f"ONNX Runtime does not run a step of {len(parts)} rows: {error}; try again") from None
        return self._scores[: len(parts), 0]

    def _binding(self, begin: int, rows: int) -> ort.IOBinding:
        """Past and present of these rows are the same memory, and the scores of all steps have one place."""
        if (begin, rows) in self._bindings:
            return self._bindings[begin, rows]
        if len(self._bindings) >= _MAX_BINDINGS:
            self._bindings.clear()
        binding = self._session.io_binding()
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._scores[:rows]))
        names = [f"{layer}.{kind}" for layer in range(self._shape.num_layers) for kind in ("key", "value")]
        for name, buffer in zip(names, self._kv_cache.of_rows(begin, begin + rows), strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        self._bindings[begin, rows] = binding
        return binding
