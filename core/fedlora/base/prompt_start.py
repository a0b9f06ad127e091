"""Where the virtual tokens of prompt tuning begin: as the base's embeddings of some tokens (arXiv:2104.08691, section 3.1).

What PEFT calls SAMPLE_VOCAB, tokens drawn from the vocabulary, and TEXT, those of a text, again from its beginning where it
has too few.
"""

# P virtual tokens, H hidden size

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import BasePack
from fedlora.base.quantize import QuantizedMatrix, dequantize
from fedlora.base.tokenizer import library_errors, plain_tokenizer
from fedlora.errors import ConfigError
from fedlora.family import EMBEDDING, DecoderShape

PromptInit = Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"]
PROMPT_INITS: tuple[PromptInit, ...] = ("SAMPLE_VOCAB", "TEXT", "RANDOM")


def tokens_to_begin_with(
    base: BasePack, init: PromptInit, text: str, count: int, generator: np.random.Generator
) -> NDArray[np.int64]:  # [P]
    """The tokens whose embeddings a prompt begins with. Raises ConfigError, PackError."""
    if init == "SAMPLE_VOCAB":
        return generator.integers(0, base.shape.vocab_size, count)
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError:
        raise ConfigError(
            "lora.prompt_tuning_init = TEXT needs the library tokenizers, which is not installed; pip install tokenizers, "
            "or take SAMPLE_VOCAB"
        ) from None
    tokenizer = plain_tokenizer(library.Tokenizer.from_buffer, base.directory)
    with library_errors():
        ids = tokenizer.encode(text).ids  # with the special tokens, as PEFT
    if not ids:
        raise ConfigError(f"lora.prompt_tuning_init_text has no token, got {text!r:.80}; give one of a word or more")
    return np.resize(np.array(ids, np.int64), count)


def embeddings_of(base: BasePack, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """[P, H], as the first block reads them."""
    assert isinstance(base.model, DecoderShape)
    matrix = base.matrix(EMBEDDING)
    zeros = None if matrix.zeros is None else matrix.zeros[tokens]
    rows = QuantizedMatrix(
        qweight=matrix.qweight[tokens], scales=matrix.scales[tokens], zeros=zeros, in_features=matrix.in_features,
        bits=matrix.bits,
    )  # fmt: skip
    return dequantize(rows) * np.float32(base.model.embedding_scale)
