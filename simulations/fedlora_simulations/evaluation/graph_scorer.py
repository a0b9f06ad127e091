"""What is asked of a model that is evaluated, computed by ONNX Runtime in an exported graph.

A window of several texts is read as several sequences: no text attends to another, and positions count from its beginning.
"""

# M windows, S sequences, T tokens of each, K of them whose next token is asked for, V vocabulary, L labels

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.base.pack import BasePack, find_pack, open_pack
from fedlora.errors import AdapterError, ConfigError, GraphError
from fedlora.exported.cache_prefix import unstacked
from fedlora.exported.profiles import DEFAULT, Profile, graph_name
from fedlora.family import DecoderShape, EncoderShape, ModelShape
from fedlora.family.encoder import with_head_of
from fedlora.graph.packed_layers import INT8_ACCURACY
from fedlora_client.data.windows import IGNORED, Windows
from fedlora_client.evaluation.ends import Ends
from fedlora_client.training.measuring import Scored
from fedlora_serve.adapters.loading import LoadedAdapter, load_adapter
from fedlora_serve.local.engine import Engine
from fedlora_serve.session import open_graph
from numpy.typing import NDArray

_PROFILES: tuple[Profile, ...] = (DEFAULT, "base")  # what a merged base has is the latter alone
_MOST_LOGITS = 1 << 25  # that are held at a time, unless one sequence has more
_MOST_ROWS = 4096  # tokens that are read at a time, unless one sequence has more
_WIDE = 1 << 22  # logits that are summed at a time, in float64
_KEEP = "logits_to_keep"


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One text of a window, as far as something of it is learned."""

    window: int
    tokens: NDArray[np.int64]  # [T]
    targets: NDArray[np.int64]  # [T]

    @property
    def kept(self) -> int:
        """How many of its last tokens are asked for what follows them."""
        return len(self.targets) - int(np.flatnonzero(self.targets != IGNORED)[0])


class GraphScorer:
    """The exported graph of a base, with an adapter as its inputs or without."""

    def __init__(self, base: BasePack, adapter: Path | None) -> None:
        """Verify the graph (compat, or else base) and the adapter. Raises GraphError, AdapterError."""
        self._base = base
        names = [graph_name(base.model, profile) for profile in _PROFILES]
        self.manifest, self._session = open_graph(base, names)
        self._adapter: LoadedAdapter | None = None
        if adapter is not None:
            self.manifest.check_takes((), str(adapter), base.directory)
            self._adapter = load_adapter(adapter, base, graph=self.manifest)
        self._engine: Engine | None = None
        self._optional = {value.name for value in self._session.get_overridable_initializers()}

    @property
    def called(self) -> str:
        """What computes, for a person."""
        rounds = self.manifest.accuracy_level == INT8_ACCURACY
        return f"ONNX Runtime, {self.manifest.graph} {'with activations in int8' if rounds else 'in float32'}"

    @property
    def shape(self) -> ModelShape:
        shape = self._base.model
        return with_head_of(shape, self._adapter.inputs) if isinstance(shape, EncoderShape) and self._adapter else shape

    def scored(self, windows: Windows) -> Scored:
        return self._texts(windows) if not isinstance(self.shape, DecoderShape) else self._decoded(windows, self.shape)

    def continued(self, prompts: Sequence[Sequence[int]], most: int, ends: Ends) -> list[list[int]]:
        """One prompt after another, with keys and values kept."""
        self._engine = self._engine or Engine(self._base.directory)
        answers = []
        for prompt in prompts:
            decoding, tokens, answer = self._engine.start(self._adapter), [*prompt], list[int]()
            for _ in range(most):
                answer.append(int(np.argmax(decoding.step(tokens))))
                tokens = answer[-1:]
                if ends.are_in(answer):
                    break
            answers.append(answer)
        return answers

    def _decoded(self, windows: Windows, shape: DecoderShape) -> Scored:
        nats = np.zeros(len(windows))
        alike: dict[int, list[_Sequence]] = defaultdict(list)
        for sequence in _sequences(windows):
            alike[len(sequence.tokens)].append(sequence)
        heads = self._adapter.prefix if self._adapter else None
        if heads is None:
            heads = np.zeros((2 * shape.num_layers, shape.num_kv_heads, 0, shape.head_dim), np.float32)
        past, virtual = unstacked(heads), heads.shape[2]
        if virtual + max(alike, default=0) > shape.max_positions:
            raise ConfigError(
                f"a text has {max(alike)} tokens, and the adapter {virtual} virtual ones; the base's context is "
                f"{shape.max_positions}: cut it"
            )
        for length, of_length in alike.items():
            of_length.sort(key=lambda sequence: sequence.kept)
            # After a cache a batch of one alone reads several tokens.
            rows = 1 if virtual else min(_MOST_ROWS // length, _MOST_LOGITS // (of_length[-1].kept * shape.vocab_size))
            several = max(1, rows)
            for first in range(0, len(of_length), several):
                batch = of_length[first : first + several]
                kept = max(sequence.kept for sequence in batch)
                feeds: dict[str, NDArray[Any]] = {
                    "input_ids": np.stack([sequence.tokens for sequence in batch]),
                    "attention_mask": np.ones((len(batch), virtual + length), np.int64),
                    **{name: np.repeat(value, len(batch), 0) for name, value in past.items()},
                    **({_KEEP: np.array([kept], np.int64)} if _KEEP in self._optional else {}),
                }
                logits = self._run("logits", feeds)[:, -kept:]
                targets = np.stack([sequence.targets[-kept:] for sequence in batch])
                found = _nats(logits.reshape(-1, shape.vocab_size), targets.reshape(-1)).reshape(targets.shape).sum(1)
                for sequence, own in zip(batch, found, strict=True):
                    nats[sequence.window] += own
        return Scored(nats)

    def _texts(self, windows: Windows) -> Scored:
        """An encoder's texts, one a window."""
        if not getattr(self.shape, "labels", ()):
            raise ConfigError(
                f"{self._base.directory}: an encoder without a classification head has no labels; pack a model "
                "ForSequenceClassification"
            )
        lengths = (windows.starts == 0).sum(1).numpy()
        nats, labels = np.zeros(len(windows)), np.zeros(len(windows), np.int64)
        in_order = np.argsort(lengths, kind="stable").tolist()
        while in_order:
            longest = int(lengths[in_order[-1]])
            several = max(1, _MOST_ROWS // longest)
            batch, in_order = in_order[-several:], in_order[:-several]
            mask = (np.arange(longest) < lengths[batch][:, None]).astype(np.int64)
            scores = self._run(None, {"input_ids": windows.inputs[batch, :longest].numpy(), "attention_mask": mask})
            nats[batch] = _nats(scores, windows.targets[batch, 0].numpy())
            labels[batch] = scores.argmax(1)
        return Scored(nats, labels)

    def _run(self, output: str | None, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What the graph gives. Raises GraphError where it does not run, and where a number is not finite."""
        graph = self._base.directory / self.manifest.graph
        inputs = self._adapter.inputs if self._adapter else {}
        try:
            result: NDArray[np.float32] = self._session.run([output] if output else None, {**feeds, **inputs})[0]
        except Exception as error:  # the runtime raises its own kinds, which share no base
            raise GraphError(f"{graph}: ONNX Runtime does not run it: {error}; export it again") from None
        if np.isfinite(result).all():
            return result
        if self._adapter:
            raise AdapterError(
                f"{self._adapter.source}: with it the scores are not finite: its values are too large; use another adapter"
            )
        raise GraphError(f"{graph}: the scores are not finite; export it again")


def graph_base(directory: str, base: BasePack) -> BasePack:
    """The pack of a folder with an exported graph. Raises GraphError where it is another base's."""
    exported = open_pack(find_pack(directory))
    if exported.fingerprint != base.fingerprint:
        raise GraphError(
            f"--graph {directory}: the graph of base {exported.fingerprint:.16}, and {base.directory} is "
            f"{base.fingerprint:.16}; export this one: fedlora export {base.directory} -o DIR"
        )
    return exported


def _sequences(windows: Windows) -> Iterator[_Sequence]:
    """The texts of all windows, each without what follows its last learned token."""
    inputs, targets, starts = windows.inputs.numpy(), windows.targets.numpy(), windows.starts.numpy()
    for window in range(len(windows)):
        learned = np.flatnonzero(targets[window] != IGNORED)
        begins = starts[window][learned]
        for begin in np.unique(begins).tolist():
            end = int(learned[begins == begin][-1]) + 1
            yield _Sequence(window, inputs[window, begin:end], targets[window, begin:end])


def _nats(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of each row [N, V], 0 where the target [N] is IGNORED."""
    nats = np.zeros(len(targets))
    for rows in np.array_split(np.flatnonzero(targets != IGNORED), max(1, logits.size // _WIDE)):
        wide = logits[rows].astype(np.float64)
        top = wide.max(1, initial=-np.inf)
        nats[rows] = top + np.log(np.exp(wide - top[:, None]).sum(1)) - wide[np.arange(len(rows)), targets[rows]]
    return nats
