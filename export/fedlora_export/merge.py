"""What merging an adapter costs: how far the merged model is from the one whose adapter stands apart.

The unmerged model writes a text, drawn from its own probabilities p; the loss is what the merged one, q, gives it more:

    KL(p || q) = sum_v p(v) (log p(v) - log q(v))       in nats a token, the mean over the text's positions
"""

# S sequences, T tokens of each, V vocabulary

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.exported.slots import slot_values
from fedlora.family import DecoderShape
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_export.checks.check import open_session

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
    text, unmerged = _written(open_session(base_graph), base.shape, slot_values(adapter), length, seed)
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
    session: ort.InferenceSession, shape: DecoderShape, slots: Mapping[str, Floats], length: int, seed: int
) -> tuple[NDArray[np.int64], list[Floats]]:
    """(tokens [S, T], the scores [S, V] after each) of texts that the model draws token by token."""
    generator, reading = np.random.default_rng(seed), _Reading(session, shape, slots)
    first = shape.bos_token_id
    token = generator.integers(0, shape.vocab_size, _SEQUENCES) if first is None else np.full(_SEQUENCES, first)
    tokens, scores = [], []
    for _ in range(length):
        tokens.append(token)
        scores.append(reading.read(token[:, None].astype(np.int64))[:, 0])
        token = (_log_softmax(scores[-1]) + generator.gumbel(size=scores[-1].shape)).argmax(-1)
    return np.stack(tokens, 1).astype(np.int64), scores


class _Reading:
    """Sequences that are read in parts."""

    def __init__(self, session: ort.InferenceSession, shape: DecoderShape, slots: Mapping[str, Floats]) -> None:
        self._session, self._slots, self._done = session, slots, 0
        cache = np.zeros((_SEQUENCES, shape.num_kv_heads, 0, shape.head_dim), np.float32)
        names = [f"{i}.{kind}" for i in range(shape.num_layers) for kind in ("key", "value")]
        self._past = {f"past_key_values.{name}": cache for name in names}

    def read(self, tokens: NDArray[np.int64]) -> Floats:
        """The logits [S, T, V] of `tokens` [S, T], after those that were read before."""
        self._done += tokens.shape[1]
        mask = np.ones((len(tokens), self._done), np.int64)
        logits, *present = self._session.run(
            None, {"input_ids": tokens, "attention_mask": mask, **self._past, **self._slots}
        )
        self._past = dict(zip(self._past, present, strict=True))
        return np.asarray(logits, np.float32)


def _log_softmax(scores: Floats) -> NDArray[np.float64]:
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
