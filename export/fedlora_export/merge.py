"""An adapter folded into its base, as a base of its own, and what that costs.

Of a decoder: the unmerged model writes a text, drawn from its own probabilities p; the loss is what the merged one, q,
gives it more:

    KL(p || q) = sum_v p(v) (log p(v) - log q(v))       in nats a token, the mean over the text's positions

Of an encoder: how far the merged one's scores are off, beside how far the adapter moves them. The same of an adapter that
no graph takes apart, IA3 or DoRA, beside what torch computes with it.
"""

# S sequences, T tokens of each, V vocabulary

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.base.merging import write_merged
from fedlora.base.pack import MANIFEST, BasePack, open_pack
from fedlora.errors import ConfigError
from fedlora.exported.inputs import input_values
from fedlora.family import DecoderShape
from fedlora.files.atomic import whole_directory
from fedlora.files.temporary import own_folder
from fedlora.graph.packed_layers import INT8_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import kind_of
from numpy.typing import NDArray

from fedlora_export.checks.check import open_session
from fedlora_export.checks.graph_runs import run_graph
from fedlora_export.checks.torch_logits import Sample, find_reference
from fedlora_export.export import ExportedGraph, export_base, is_folder_of, write_graphs

_SEQUENCES, _TOKENS = 4, 64

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLoss:
    """Means over the positions of the text."""

    entropy: float  # nats a token that the unmerged model gives its own text
    divergence: float  # nats a token that the merged one gives it more
    agreement: float  # share of positions where both have the same likeliest token

    def __str__(self) -> str:
        return (
            f"{self.divergence:.4f} nats a token worse than with the adapter apart, on text of {self.entropy:.3f} nats a "
            f"token; the same likeliest token at {self.agreement:.1%} of the places"
        )


def merge_loss(base_graph: Path, base: BasePack, adapter: Adapter, merged_graph: Path, *, seed: int = 0) -> MergeLoss:
    """`base_graph` is the base's in the profile compat, `merged_graph` the merged pack's, of any profile."""
    length = min(_TOKENS, base.shape.max_positions)
    text, unmerged = _written(open_session(base_graph), base.shape, input_values(adapter), length, seed)
    merged = _Reading(open_session(merged_graph), base.shape, {})
    entropy, divergence, agreement = 0.0, 0.0, 0.0
    for position, scores in enumerate(unmerged):  # one at a time: a vocabulary may be large
        log_p, log_q = _log_softmax(scores), _log_softmax(merged.read(text[:, position : position + 1])[:, 0])
        p = np.exp(log_p)
        entropy -= float((p * log_p).sum(-1).mean())
        divergence += float((p * (log_p - log_q)).sum(-1).mean())
        agreement += float((log_p.argmax(-1) == log_q.argmax(-1)).mean())
    return MergeLoss(entropy=entropy / length, divergence=divergence / length, agreement=agreement / length)


def _written(
    session: ort.InferenceSession, shape: DecoderShape, adapter_inputs: Mapping[str, Floats], length: int, seed: int
) -> tuple[NDArray[np.int64], list[Floats]]:
    """(tokens [S, T], the scores [S, V] after each) of texts that the model draws token by token."""
    generator, reading = np.random.default_rng(seed), _Reading(session, shape, adapter_inputs)
    begin = [np.full(_SEQUENCES, token) for token in shape.tokens_before_text]
    token = begin[0] if begin else generator.integers(0, shape.vocab_size, _SEQUENCES)
    tokens, scores = [], []
    for place in range(length):
        token = begin[place] if place < len(begin) else token
        tokens.append(token)
        scores.append(reading.read(token[:, None].astype(np.int64))[:, 0])
        token = (_log_softmax(scores[-1]) + generator.gumbel(size=scores[-1].shape)).argmax(-1)
    return np.stack(tokens, 1).astype(np.int64), scores


class _Reading:
    """Sequences that are read in parts."""

    def __init__(
        self, session: ort.InferenceSession, shape: DecoderShape, adapter_inputs: Mapping[str, Floats]
    ) -> None:
        self._session, self._adapter_inputs, self._done = session, adapter_inputs, 0
        cache = np.zeros((_SEQUENCES, shape.num_kv_heads, 0, shape.head_dim), np.float32)
        names = [f"{i}.{kind}" for i in range(shape.num_layers) for kind in ("key", "value")]
        self._past = {f"past_key_values.{name}": cache for name in names}

    def read(self, tokens: NDArray[np.int64]) -> Floats:
        """The logits [S, T, V] of `tokens` [S, T], after those that were read before."""
        self._done += tokens.shape[1]
        mask = np.ones((len(tokens), self._done), np.int64)
        logits, *present = self._session.run(
            None, {"input_ids": tokens, "attention_mask": mask, **self._past, **self._adapter_inputs}
        )
        self._past = dict(zip(self._past, present, strict=True))
        return np.asarray(logits, np.float32)


def _log_softmax(scores: Floats) -> NDArray[np.float64]:
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def export_merged(
    base: BasePack, adapter: Adapter, output: str | Path, *, accuracy_level: int = INT8_ACCURACY, replace: bool = False
) -> tuple[ExportedGraph, MergeLoss | MergeDifference | None]:
    """Write the pack of `base` with `adapter` folded into it, and its graph, into a new folder `output`.

    The second value is what it costs against the base with the adapter apart; an encoder writes no text: its scores differ.
    None where it takes torch to tell, and fedlora[client] is not installed.
    Raises GraphError, ConfigError, AdapterError where the merged weights are not finite, AdapterMismatchError.
    """
    output = Path(output)
    if is_folder_of(base, output):
        raise ConfigError(f"{output}: the base's own folder, which a merged base would replace; name another output")
    with whole_directory(output, replace=MANIFEST if replace else None) as aside:
        write_merged(base, adapter, aside)
        (graph,) = write_graphs(open_pack(aside), ["base"], accuracy_level)
        if kind_of(adapter).name != "lora":
            return graph.moved_to(output), difference_from_torch(base, adapter, graph.path)
        with own_folder("unmerged", aside.parent) as beside:
            (apart,) = export_base(base, beside / "model", accuracy_level=accuracy_level)
            is_decoder = isinstance(base.model, DecoderShape)
            cost = (merge_loss if is_decoder else merge_difference)(apart.path, base, adapter, graph.path)
    return graph.moved_to(output), cost


def difference_from_torch(base: BasePack, adapter: Adapter, merged_graph: Path) -> MergeDifference | None:
    """As `merge_difference`, beside the trainer's own scores; None where the client is not installed."""
    if (reference := find_reference()) is None:
        return None
    sample = Sample.of(base)
    tokens, mask = sample.tokens[1:], sample.mask[1:]  # the row without padding
    plain, adapted = (reference(base, tokens, one, mask) for one in (None, adapter))
    merged, _ = run_graph(open_session(merged_graph), base, "base", tokens, mask, [None])
    return MergeDifference(merged=float(np.abs(merged - adapted).max()), adapter=float(np.abs(adapted - plain).max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDifference:
    """Largest differences of scores, or of embeddings, over two random texts."""

    merged: float  # of the merged graph from the base's with the adapter apart
    adapter: float  # that the adapter makes

    def __str__(self) -> str:
        return f"{self.merged:.2e} off the scores with the adapter apart, which the adapter moves by {self.adapter:.2e}"


def merge_difference(base_graph: Path, base: BasePack, adapter: Adapter, merged_graph: Path) -> MergeDifference:
    """`base_graph` is the base's in the profile compat, `merged_graph` the merged pack's in the profile base."""
    sample, apart = Sample.of(base), open_session(base_graph)
    tokens, mask = sample.tokens, sample.mask
    plain, _ = run_graph(apart, base, "compat", tokens, mask, [None, None])
    adapted, _ = run_graph(apart, base, "compat", tokens, mask, [adapter, adapter])
    merged, _ = run_graph(open_session(merged_graph), base, "base", tokens, mask, [None, None])
    return MergeDifference(merged=float(np.abs(merged - adapted).max()), adapter=float(np.abs(adapted - plain).max()))
