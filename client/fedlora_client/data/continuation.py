"""A completion becomes tokens that go on from those of its prompt.

    prompt      Lily said        ▁L ily ▁said               as it is read when the model is asked
    joined      Lily said\\nHi    ▁L ily ▁said <0x0A> H i
    learned                                  <0x0A> H i     without the ▁ that begins a text of its own

Where the joined text has a border between the two, what is learned are the tokens after it. Where one token holds a bit of
both, the prompt keeps its own and the completion is cut as it would be after some other text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fedlora_client.data.tokenizer import decoded, encoded, token_ids

Ids = NDArray[np.int64]  # the tokens [N] of a text

# After each of these the completion may be cut off again: a tokenizer joins few of them with what follows.
_BEFORE = ("\n", "a", ".", "0", ")", "|", "—")


def split_tokens(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[Ids, Ids]:
    """(the tokens of the prompt, those of the completion after them); no special ones are added.

    Both decoded together are what the joined text's own tokens decode to, as far as the tokenizer can tell.
    """
    read, joined = token_ids(tokenizer, prompt), token_ids(tokenizer, prompt + completion)
    if len(joined) > len(read) and np.array_equal(joined[: len(read)], read):
        return read, joined[len(read) :]
    wanted = (_text(tokenizer, joined), prompt + completion)
    for learned in _candidates(tokenizer, prompt, completion):
        if len(learned) and _text(tokenizer, np.concatenate([read, learned])) in wanted:
            return read, learned
    return read, token_ids(tokenizer, completion)


def _candidates(tokenizer: Tokenizer, prompt: str, completion: str) -> Iterator[Ids]:
    """What may be the completion's tokens, the likeliest first."""
    joined = encoded(tokenizer, prompt + completion)
    # As the joined text has it, after a border that falls between the two, though the tokens before it differ.
    yield joined.ids[joined.begins >= len(prompt)]
    yield token_ids(tokenizer, completion)
    for before in (*_BEFORE, prompt[-1:]):
        cut, whole = token_ids(tokenizer, before), token_ids(tokenizer, before + completion)
        if np.array_equal(whole[: len(cut)], cut):
            yield whole[len(cut) :]


def _text(tokenizer: Tokenizer, tokens: Ids) -> str:
    return decoded(tokenizer, tokens.tolist())
