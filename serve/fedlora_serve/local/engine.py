"""One base in one ONNX Runtime session; an adapter is chosen per step and nothing is rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import open_pack
from fedlora.errors import AdapterError, ConfigError, GraphError
from fedlora.exported.profiles import DEFAULT, Profile, graph_name
from fedlora.peft.finding import find_adapter
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter, WeightedAdapter, load_adapter
from fedlora_serve.adapters.together import copied, together
from fedlora_serve.session import open_graph
from fedlora_serve.text.tokenizer import open_tokenizer

_PROFILES: tuple[Profile, ...] = (DEFAULT, "base")  # what a merged base has is the latter alone
_KEEP = "logits_to_keep"
_LAST_TOKEN = np.ones(1, np.int64)  # what an OrtValue points to must outlive it


class Engine:
    """The exported model of one folder."""

    def __init__(self, directory: str | Path, *, threads: int = 0) -> None:
        """Verify the pack and the graph (compat, or else base), and build the session.

        `threads` 0 leaves the choice to ONNX Runtime.

        Raises PackError, GraphError.
        """
        self.base = open_pack(directory)
        names = [graph_name(self.base.shape, profile) for profile in _PROFILES]
        self.graph_manifest, self._session = open_graph(self.base, names, threads=threads)
        self.tokenizer = open_tokenizer(self.base.directory)

    def load_adapter(self, path: str | Path, *, allow_unnamed_base: bool = False) -> LoadedAdapter:
        """Read and verify a PEFT directory, here or on the hub, or a .onnx_adapter file. Raises AdapterError,
        AdapterMismatchError where the graph does not take it.

        `allow_unnamed_base` takes a file of another tool, which names no base, where its names and shapes fit.
        """
        self.graph_manifest.check_takes((), str(path), self.base.directory)
        return load_adapter(
            find_adapter(path), self.base, allow_unnamed_base=allow_unnamed_base, graph=self.graph_manifest
        )

    def load_adapters(
        self, shares: Sequence[tuple[str | Path, float]], *, allow_unnamed_base: bool = False
    ) -> LoadedAdapter | None:
        """What several adapters with weights are together; one of weight 1 is itself, and none is the base.

        Raises as `load_adapter` and `together`.
        """
        parts = [
            WeightedAdapter(
                adapter=replace(self.load_adapter(path, allow_unnamed_base=allow_unnamed_base), name=str(path)),
                weight=weight,
            )
            for path, weight in shares
        ]
        if not parts:
            return None
        if len(parts) == 1 and parts[0].weight == 1:
            return parts[0].adapter
        return copied(together(parts, "--adapter"))

    def start(self, adapter: LoadedAdapter | None = None) -> Decoding:
        """An empty sequence that speaks with `adapter`."""
        return Decoding(self._session, self, adapter)


class Decoding:
    """One sequence: its key/value cache and its adapter. `length` counts virtual tokens too, as the context does."""

    def __init__(self, session: ort.InferenceSession, engine: Engine, adapter: LoadedAdapter | None) -> None:
        shape = engine.base.shape
        self._session, self._shape = session, shape
        self._graph = engine.base.directory / engine.graph_manifest.graph
        self._adapter = adapter  # an OrtValue owns no memory: it points to the adapter's
        inputs = adapter.inputs if adapter else {}
        self._inputs = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        optional = {value.name for value in session.get_overridable_initializers()}
        self._constant = {_KEEP: ort.OrtValue.ortvalue_from_numpy(_LAST_TOKEN)} if _KEEP in optional else {}
        self._outputs = [output.name for output in session.get_outputs()]
        empty = ort.OrtValue.ortvalue_from_shape_and_type([1, shape.num_kv_heads, 0, shape.head_dim], np.float32)
        names = [f"{i}.{kind}" for i in range(shape.num_layers) for kind in ("key", "value")]
        past = [empty] * len(names)
        if adapter and adapter.prefix is not None:
            past = [ort.OrtValue.ortvalue_from_numpy(heads[None]) for heads in adapter.prefix]
        self._past = {f"past_key_values.{name}": value for name, value in zip(names, past, strict=True)}
        self._virtual = adapter.virtual_tokens if adapter else 0
        self.length = self._virtual

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read `tokens`; return the scores [V] of the next one.

        Raises ConfigError past the base's context, GraphError where the graph does not run, and AdapterError, or
        GraphError without an adapter, where a score is not finite. What was read before stays read.
        """
        if not tokens or not all(0 <= token < self._shape.vocab_size for token in tokens):
            raise ConfigError(f"expected token ids from 0 to {self._shape.vocab_size - 1}, got {list(tokens)[:8]}")
        length = self.length + len(tokens)
        if length > self._shape.max_positions:
            among = f", the adapter's {self._virtual} virtual ones among them," if self._virtual else ""
            raise ConfigError(
                f"{length} tokens{among} are more than the base's context of {self._shape.max_positions}; shorten the "
                "prompt"
            )
        ids, mask = np.array([tokens], np.int64), np.ones((1, length), np.int64)
        feeds = {
            "input_ids": ort.OrtValue.ortvalue_from_numpy(ids),
            "attention_mask": ort.OrtValue.ortvalue_from_numpy(mask),
            **self._constant,
            **self._past,
            **self._inputs,
        }
        try:
            logits, *present = self._session.run_with_ort_values(self._outputs, feeds)
        except Exception as error:  # the runtime raises its own kinds, which share no base
            raise GraphError(f"{self._graph}: ONNX Runtime does not run it: {error}; export it again") from None
        scores: NDArray[np.float32] = logits.numpy()[0, -1]
        self._check_finite(scores)
        self._past, self.length = dict(zip(self._past, present, strict=True)), length
        return scores

    def _check_finite(self, scores: NDArray[np.float32]) -> None:
        if np.isfinite(scores).all():
            return
        if self._adapter:
            told = self._adapter.name if self._adapter.made_of else self._adapter.source
            raise AdapterError(
                f"{told}: with it the scores of the next token are not finite: its values are too large; use another "
                "adapter"
            )
        raise GraphError(f"{self._graph}: the scores of the next token are not finite; export it again")
