"""Whether a frozen head can learn where a text ends.

A head's row gives a token its score: two tokens with one row always have one score. The rows of tokens that pre-training
never saw (</s> of a model of stories, <|eot_id|> of a Llama 3 that is no chat model) are all alike, so no adapter below
can make the model choose one of them.
"""

# V vocabulary, H hidden size

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.base.quantize import QuantizedMatrix, dequantize
from fedlora.counted import counted
from fedlora.family import DecoderShape
from fedlora.family.decoder import EMBEDDING, HEAD
from numpy.typing import NDArray

from fedlora_client.data.encoding import IGNORED
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.model import Model

log = logging.getLogger("fedlora.client")
_MOST = 8  # different tokens that end what is learned: more of them are no ends


def unlearnable_end(model: Model, windows: Windows) -> str:
    """What to tell of a token that ends what is learned and that the head cannot tell from others; empty: nothing."""
    if not isinstance(model.shape, DecoderShape):
        return ""
    for token in _learned_ends(windows, model.shape):
        if alike := count_alike(model.base, token):
            name = open_tokenizer(model.base.directory).id_to_token(token)
            return (
                f"{name} (token {token}) ends what is learned, and the base cannot tell it from "
                f"{counted(alike, 'other token')}: its "
                "head, which is frozen, has one row for all, so the model does not learn to stop; fedlora train "
                f"with --set lora.modules_to_save={HEAD} trains the head too, and a base that learned {name} needs none"
            )
    return ""


@lru_cache(maxsize=64)
def warn_once(text: str) -> None:
    """Say it, unless this process has: the devices of a simulation share a base, and a device has many rounds."""
    log.warning("%s", text)


def count_alike(base: BasePack, token: int) -> int:
    """How many other tokens have the row of `token` in the head, within its quantization."""
    matrix = base.matrix(EMBEDDING if base.shape.tie_word_embeddings else HEAD)
    # The first block of all rows leaves few to compare whole.
    first = QuantizedMatrix(
        qweight=matrix.qweight[:, :1], scales=matrix.scales[:, :1],
        zeros=None if matrix.zeros is None else matrix.zeros[:, :1],
        in_features=min(matrix.in_features, matrix.block_size), bits=matrix.bits,
    )  # fmt: skip
    near = _near(first, token)
    rows = np.flatnonzero(near)
    some = QuantizedMatrix(
        qweight=matrix.qweight[rows], scales=matrix.scales[rows],
        zeros=None if matrix.zeros is None else matrix.zeros[rows],
        in_features=matrix.in_features, bits=matrix.bits,
    )  # fmt: skip
    return int(_near(some, int(np.searchsorted(rows, token))).sum()) - 1


def _near(matrix: QuantizedMatrix, row: int) -> NDArray[np.bool_]:  # [V]
    """Which rows are the row number `row`, within a step of its quantization."""
    weight = dequantize(matrix)  # [V, H]
    steps = 1.01 * np.abs(np.repeat(matrix.scales[row], matrix.block_size)[: matrix.in_features])
    near: NDArray[np.bool_] = (np.abs(weight - weight[row]) <= steps).all(1)
    return near


def _learned_ends(windows: Windows, shape: DecoderShape) -> list[int]:
    """The tokens that end what is learned of an example: the base's own ends, and what stands last of an answer."""
    targets, starts = windows.targets.numpy(), windows.starts.numpy()
    goes_on = (targets[:, 1:] != IGNORED) & (starts[:, 1:] == starts[:, :-1])
    last, counts = np.unique(targets[:, :-1][(targets[:, :-1] != IGNORED) & ~goes_on], return_counts=True)
    often = [int(token) for token in last[np.argsort(-counts)]] if len(last) <= _MOST else []
    own = [token for token in shape.eos_token_ids if (targets == token).any()]
    return list(dict.fromkeys([*own, *often]))
