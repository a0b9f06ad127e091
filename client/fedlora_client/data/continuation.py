"""A completion becomes tokens that go on from those of its prompt.

    prompt      Lily said        ▁L ily ▁said               as it is read when the model is asked
    joined      Lily said\\nHi    ▁L ily ▁said <0x0A> H i
    learned                                  <0x0A> H i     without the ▁ that begins a text of its own

Where the joined text has a border between the two, what is learned are the tokens after it. Where one token holds a bit of
both, the prompt keeps its own and the completion is cut as it would be after some other text.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer

from fedlora_client.data.tokenizer import decoded, encoded

# After each of these the completion may be cut off again: a tokenizer joins few of them with what follows.
_BEFORE = ("\n", "a", ".", "0", ")", "|", "—")


def split_tokens(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """(the tokens of the prompt, those of the completion after them); no special ones are added.

    Both decoded together are what the joined text's own tokens decode to, as far as the tokenizer can tell.
    """
    read, joined = _ids(tokenizer, prompt), _ids(tokenizer, prompt + completion)
    if joined[: len(read)] == read and len(joined) > len(read):
        return read, joined[len(read) :]
    wanted = (_text(tokenizer, joined), prompt + completion)
    for learned in _candidates(tokenizer, prompt, completion):
        if learned and _text(tokenizer, [*read, *learned]) in wanted:
            return read, learned
    return read, _ids(tokenizer, completion)


def _candidates(tokenizer: Tokenizer, prompt: str, completion: str) -> Iterator[list[int]]:
    """What may be the completion's tokens, the likeliest first."""
    joined = encoded(tokenizer, prompt + completion)
    # As the joined text has it, after a border that falls between the two, though the tokens before it differ.
    yield [token for token, (begin, _) in zip(joined.ids, joined.offsets, strict=True) if begin >= len(prompt)]
    yield _ids(tokenizer, completion)
    for before in (*_BEFORE, prompt[-1:]):
        cut, whole = _ids(tokenizer, before), _ids(tokenizer, before + completion)
        if whole[: len(cut)] == cut:
            yield whole[len(cut) :]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = encoded(tokenizer, text).ids
    return ids


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return decoded(tokenizer, tokens)
