"""A decoder graph in a plain ONNX Runtime session: ours, and those of genai's builder and of Olive."""

# T tokens, V vocabulary, K key/value heads, D head size

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.engine import MAX_LENGTH, ExportJob

_ADAPTERS = 2  # to swap between
Values = dict[str, NDArray[Any]]


class OrtEngine:
    """A session, its cache, and random values for its adapter inputs."""

    def __init__(self, job: ExportJob) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
        self._session: Any = ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
        shapes = {given.name: given.shape for given in self._session.get_inputs()}
        self._past = [name for name in shapes if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        self._heads, self._head_dim = shapes[self._past[0]][1], job.head_dim
        optional = {given.name: given for given in self._session.get_overridable_initializers()}
        adapter_inputs = {name: given.shape for name, given in optional.items() if given.type == "tensor(float)"}
        scores = next(output for output in self._session.get_outputs() if output.name == "logits")
        self._row = np.zeros((1, 1, scores.shape[-1]), np.float32)  # where a step leaves its logits
        self._logits: NDArray[np.float32] = self._row
        # Ours can be told that the last token's logits are enough; those of genai's tuned build always are.
        self._constant = {"logits_to_keep": np.ones(1, np.int64)} if "logits_to_keep" in optional else {}
        self._adapters = _random_adapters(adapter_inputs, job.rank) if job.rank else [{}]
        self._shared = job.shared_cache
        self._token = 0
        if self._shared:
            self._bind()
        self.reset()

    def reset(self) -> None:
        self._length = 0
        if not self._shared:
            self._cache = [np.zeros((1, self._heads, 0, self._head_dim), np.float32)] * len(self._past)

    def prompt(self, tokens: NDArray[np.int64]) -> None:
        self._length += len(tokens)
        feeds = {"input_ids": tokens.astype(np.int64)[None], "attention_mask": np.ones((1, self._length), np.int64)}
        self._logits = self._run_bound(feeds) if self._shared else self._run(feeds)
        self._token = int(self._logits[0, -1].argmax())

    def step(self) -> None:
        self.prompt(np.array([self._token]))

    def rewind(self, length: int) -> None:
        self._length = length
        if not self._shared:
            self._cache = [np.ascontiguousarray(cache[:, :, :length]) for cache in self._cache]

    def swap(self) -> None:
        self._adapters.reverse()
        if self._shared:
            self._bind_optional(self._adapters[0])

    def logits(self) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._logits[0, -1]
        return row

    def _run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        past = dict(zip(self._past, self._cache, strict=True))
        logits, *self._cache = self._session.run(
            ["logits", *self._present], self._constant | feeds | past | self._adapters[0]
        )
        return np.asarray(logits)

    def _run_bound(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        for name, value in feeds.items():
            self._binding.bind_cpu_input(name, value)
        one = feeds["input_ids"].shape[1] == 1
        if one:
            self._binding.bind_ortvalue_output("logits", self._row_value)
        else:
            self._binding.bind_output("logits", "cpu")  # its length is the graph's to choose
        self._session.run_with_iobinding(self._binding)
        return self._row if one else np.asarray(self._binding.get_outputs()[-1].numpy())

    def _bind(self) -> None:
        self._binding = self._session.io_binding()
        self._row_value = ort.OrtValue.ortvalue_from_numpy(self._row)
        size = (1, self._heads, MAX_LENGTH, self._head_dim)
        self._buffers = [np.zeros(size, np.float32) for _ in self._past]
        for past, present, buffer in zip(self._past, self._present, self._buffers, strict=True):
            self._binding.bind_cpu_input(past, buffer)
            self._binding.bind_output(present, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        self._bind_optional(self._constant)
        self._bind_optional(self._adapters[0])

    def _bind_optional(self, values: Mapping[str, NDArray[Any]]) -> None:
        for name, value in values.items():  # bind_cpu_input does not know optional inputs
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))


def _random_adapters(adapter_inputs: Mapping[str, list[int | str]], rank: int) -> list[Values]:
    """Values for all adapter inputs; their one free dimension is the rank, or that of all modules that are joined."""
    generator = np.random.default_rng(2)

    def value(name: str, shape: list[int | str]) -> NDArray[np.float32]:
        joined = rank * (1 + name.count("+"))  # q_proj+k_proj+v_proj: see fedlora.exported.inputs
        return generator.normal(0, 0.02, [n if isinstance(n, int) else joined for n in shape]).astype(np.float32)

    return [{name: value(name, shape) for name, shape in adapter_inputs.items()} for _ in range(_ADAPTERS)]
