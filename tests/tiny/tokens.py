"""Random token ids: S sequences of T tokens."""

from __future__ import annotations

import numpy as np
from fedlora.base.pack import BasePack
from numpy.typing import NDArray

from tests.tiny.encoders import shape_of


def random_texts(
    base: BasePack, lengths: tuple[int, ...], seed: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids [S, T] of texts of these lengths, padded on the right, and the mask [S, T], 1 where there is text."""
    shape, generator = shape_of(base), np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    # The padding's own id is in no text: RoBERTa, to transformers, counts its positions over all other ids.
    tokens = generator.integers(shape.pad_token_id + 1, shape.vocab_size, mask.shape)
    return np.where(mask == 1, tokens, shape.pad_token_id), mask


def random_tokens(base: BasePack, sequences: int, length: int, seed: int = 2) -> NDArray[np.int64]:
    """Token ids [S, T]."""
    return np.random.default_rng(seed).integers(0, base.shape.vocab_size, (sequences, length))
