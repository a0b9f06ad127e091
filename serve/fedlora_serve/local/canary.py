"""The canary of a release, tried by the engine that serves: the loss of texts, or the labels that an encoder gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack, find_pack, open_pack
from fedlora.counted import counted
from fedlora.errors import ConfigError, FedloraError, GraphError, ReleaseError
from fedlora.exported.profiles import DEFAULT, graph_name
from fedlora.family import EncoderShape
from fedlora.family.encoder import labels_of
from fedlora.release.canary import Canary, CanaryText
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter, load_adapter
from fedlora_serve.local.engine import Engine
from fedlora_serve.session import open_graph
from fedlora_serve.text.tokenizer import open_tokenizer, prompt_tokens, tokens_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one text."""

    text: str
    is_good: bool
    told: str


def try_canary(canary: Canary, model: str | Path, adapter: Path) -> list[Tried]:
    """What comes of each text with the adapter, on the exported base in `model`. Raises FedloraError."""
    base = open_pack(find_pack(model))
    kinds = {"label" if text.label is not None else "loss" for text in canary.texts}
    expected = "label" if isinstance(base.model, EncoderShape) else "loss"
    if kinds != {expected}:
        raise ReleaseError(
            f"canary: texts with {' and '.join(sorted(kinds))}; this base takes some with {expected} only"
        )
    if isinstance(base.model, EncoderShape):
        return _labels(canary.texts, base, base.model, load_adapter(adapter, base))
    engine = Engine(base.directory)
    loaded = engine.load_adapter(adapter)
    return [_loss(text, engine, loaded) for text in canary.texts]


def text_loss(engine: Engine, tokens: Sequence[int], adapter: LoadedAdapter | None) -> float:
    """-(1/(T-1)) sum_t log p(token_t | tokens before it), in nats, over the T tokens but the first.

    Raises ConfigError below two tokens, and as `Decoding.step`.
    """
    if len(tokens) < 2:
        raise ConfigError(f"{counted(len(tokens), 'token')}: no loss; at least 2 are needed: give a longer text")
    decoding, losses = engine.start(adapter), []
    for token, following in pairwise(tokens):
        scores = decoding.step([token]).astype(np.float64)
        top = scores.max()
        losses.append(top + np.log(np.exp(scores - top).sum()) - scores[following])
    return float(np.mean(losses))


def _loss(text: CanaryText, engine: Engine, adapter: LoadedAdapter) -> Tried:
    assert text.max_loss is not None
    try:
        loss = text_loss(engine, prompt_tokens(engine.tokenizer, engine.base.shape, text.text), adapter)
    except FedloraError as error:
        return Tried(text=text.text, is_good=False, told=str(error))
    is_good = loss <= text.max_loss  # a loss that is no number is not
    return Tried(text=text.text, is_good=is_good, told=f"loss {loss:.4f}, at most {text.max_loss:g}")


def _labels(texts: Sequence[CanaryText], base: BasePack, shape: EncoderShape, adapter: LoadedAdapter) -> list[Tried]:
    if not shape.labels:
        raise ReleaseError(
            f"{base.directory}: an encoder without labels; expected one with a head, for a canary with labels"
        )
    manifest, session = open_graph(base, [graph_name(shape, DEFAULT)])
    manifest.check_takes(adapter.inputs, adapter.name, base.directory)
    tokenizer = open_tokenizer(base.directory)
    tried = []
    for text in texts:
        tokens = tokens_of(tokenizer, text.text, add_special_tokens=True, at_most=shape.max_positions)
        ids = np.array([tokens], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **adapter.inputs}
        try:
            scores: NDArray[np.float32] = session.run(None, feeds)[0][0]
        except Exception as error:  # the runtime raises its own kinds, which share no base
            raise GraphError(f"{base.directory}: ONNX Runtime does not run it: {error}; export it again") from None
        label = labels_of(shape, len(scores))[int(scores.argmax())] if np.isfinite(scores).all() else "not finite"
        tried.append(Tried(text=text.text, is_good=label == text.label, told=f"label {label}, expected {text.label}"))
    return tried
