"""The tokens that end the answers of chats where the base does not know them as ends: the adapter has to say so.

A base that is no chat model ends its texts with one token (<|endoftext|>) and its chat template ends answers with another
(<|im_end|>). Whoever runs the adapter must stop there, though nothing in the base says so.
"""

from __future__ import annotations

import json

import numpy as np
from fedlora.data.chat_settings import GENERATION
from fedlora.family import DecoderShape
from tokenizers import Tokenizer

from fedlora_client.data.encoding import IGNORED
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.model import Model

_AFTER = 3  # tokens that a template may write after the end of an answer: line breaks


def answer_ends_files(model: Model, windows: Windows) -> dict[str, str]:
    """{name: content} of the file that says it beside an adapter, as transformers has it; empty where nothing is to say."""
    if not isinstance(model.shape, DecoderShape):
        return {}
    ends = answer_ends(windows, model.shape, open_tokenizer(model.base.directory))
    if not ends:
        return {}
    return {GENERATION: json.dumps({"eos_token_id": [*ends, *model.shape.eos_token_ids]}, indent=1) + "\n"}


def answer_ends(windows: Windows, shape: DecoderShape, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that end a tenth or more of what is learned, without the base's own ends."""
    added = tokenizer.get_added_tokens_decoder()
    special = np.array([token for token, what in added.items() if what.special], np.int64)
    targets, starts = windows.targets.numpy(), windows.starts.numpy()
    learned = targets != IGNORED
    goes_on = learned[:, 1:] & (starts[:, 1:] == starts[:, :-1])
    is_last = learned.copy()
    is_last[:, :-1] &= ~goes_on
    is_last[:, -1] = False  # perhaps cut
    rows, columns = np.nonzero(is_last)
    found = np.full(len(rows), IGNORED, np.int64)
    for back in range(_AFTER + 1):  # the nearest one counts
        places = np.maximum(columns - back, 0)
        tokens = np.where(columns >= back, targets[rows, places], IGNORED)
        found = np.where((found == IGNORED) & np.isin(tokens, special), tokens, found)
    ends, counts = np.unique(found[found != IGNORED], return_counts=True)
    often = ends[counts >= max(1, len(rows) // 10)]
    return tuple(int(end) for end in often if end not in shape.eos_token_ids)
