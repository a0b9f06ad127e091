"""The text of fedlora-nano: what it is trained on, what it is measured on, and what counting alone can do with it."""

from __future__ import annotations

import hashlib

import numpy as np
from fedlora_simulations.datasets.stdlib import pretraining_documents
from numpy.typing import NDArray
from tokenizers import Tokenizer

WINDOW = 256  # tokens that the model sees at once
VOCABULARY = 4096
BOS, EOS = "<s>", "</s>"

Tokens = NDArray[np.int64]
Documents = list[tuple[str, str]]  # (name, text)


def documents() -> tuple[Documents, Documents]:
    """(for training, held out)."""
    everything = list(pretraining_documents())
    return [d for d in everything if not is_held_out(d[0])], [d for d in everything if is_held_out(d[0])]


def is_held_out(name: str) -> bool:
    """One document in fifty, chosen by its name alone, measures and never trains."""
    return hashlib.sha256(name.encode()).digest()[0] < 5


def tokens_of(documents: Documents, tokenizer: Tokenizer) -> Tokens:
    """<s> text </s>, one document after another, as one row of ids."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    rows = [np.array([bos, *e.ids, eos], np.int64) for e in tokenizer.encode_batch([text for _, text in documents])]
    return np.concatenate(rows)


def ngram_losses(train: Tokens, held_out: Tokens) -> tuple[float, float]:
    """Nats per token of an add-one unigram, and of a bigram mixed with it in the proportion that suits best."""
    unigram = (np.bincount(train, minlength=VOCABULARY) + 1) / (len(train) + VOCABULARY)
    pairs = np.bincount(train[:-1] * VOCABULARY + train[1:], minlength=VOCABULARY**2).reshape(VOCABULARY, VOCABULARY)
    before, after = held_out[:-1], held_out[1:]
    bigram = pairs[before, after] / np.maximum(pairs.sum(1)[before], 1)
    mixed = [float(-np.log(m * bigram + (1 - m) * unigram[after]).mean()) for m in np.linspace(0.05, 0.99, 48)]
    return float(-np.log(unigram[after]).mean()), min(mixed)
