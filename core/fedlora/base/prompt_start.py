"""Where the virtual tokens of prompt tuning begin: as the base's embeddings of some tokens (arXiv:2104.08691, section 3.1).

What PEFT calls SAMPLE_VOCAB are tokens that are drawn from the vocabulary. TEXT, those of a text, takes a tokenizer, which
core and a server have not: `fedlora_client/data/prompt_text.py`.
"""

# P virtual tokens, H hidden size

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import BasePack
from fedlora.base.quantize import QuantizedMatrix, dequantize
from fedlora.family import EMBEDDING, DecoderShape

PROMPT_INITS = ("SAMPLE_VOCAB", "TEXT", "RANDOM")


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
