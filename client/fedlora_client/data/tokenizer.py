"""The one place of the client that opens a tokenizer, and the one that gives it a text: piece by piece, where it is long.

The library `tokenizers` keeps some fifty bytes for each character of a text that it reads. So a long one is read in pieces
that overlap, and two pieces are joined where both have the same tokens: what either makes of its own end is not used.

    piece      The cat sat on the m
    piece                   on the mat and slept
    joined     The cat sat on the mat and slept        before ` the`, which stands amid tokens that are the same in both
"""

# N tokens of a text

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fedlora.base.tokenizer import library_errors, plain_tokenizer
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

PIECE, OVERLAP = 1 << 16, 1 << 12  # characters
_ALIKE = 8  # tokens on each side of a place where two pieces are joined


class Tokens(NamedTuple):
    """A text's tokens, and the characters of it that each of them is."""

    ids: NDArray[np.int64]  # [N]
    begins: NDArray[np.int64]  # [N]
    ends: NDArray[np.int64]  # [N], after the last one


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack, or of a checkpoint. Raises PackError where its file is damaged."""
    return plain_tokenizer(Tokenizer.from_buffer, directory)


def encoded(tokenizer: Tokenizer, text: str) -> Tokens:
    """The text's tokens and where they stand in it, no special ones added. Raises PackError where the library fails.

    Those of a long text are what the library makes of all of it at once, unless it has no place in 4096 characters where
    two pieces can be joined, as in one word of that length: there it is cut as a new text would begin.
    """
    parts = list(_pieces(tokenizer, text))
    return parts[0] if len(parts) == 1 else Tokens(*map(np.concatenate, zip(*parts, strict=True)))


def token_ids(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    """The tokens [N] of `encoded` alone, in a third of the memory."""
    return np.concatenate([part.ids for part in _pieces(tokenizer, text)])


def encoding_of(tokenizer: Tokenizer, text: str) -> Encoding:
    """What the library itself says of a text that is not long. Raises PackError where it fails."""
    with library_errors():
        return tokenizer.encode(text, add_special_tokens=False)


def decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The text of tokens, special ones included. Raises PackError where the library fails."""
    with library_errors():
        text: str = tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def _pieces(tokenizer: Tokenizer, text: str) -> Iterator[Tokens]:
    """The tokens of a text in several parts, which follow one another."""
    piece = _piece(tokenizer, text, 0)
    end = PIECE
    while end < len(text):
        following = _piece(tokenizer, text, end - OVERLAP)
        here, there = _joint(piece, following, end)
        if here is None:
            following = _piece(tokenizer, text, end)
        yield Tokens(*(part[:here] for part in piece))
        piece = Tokens(*(part[there:] for part in following))
        end += PIECE - (OVERLAP if here is not None else 0)
    yield piece


def _piece(tokenizer: Tokenizer, text: str, begin: int) -> Tokens:
    encoding = encoding_of(tokenizer, text[begin : begin + PIECE])
    begins, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T + begin
    return Tokens(np.array(encoding.ids, np.int64), begins, ends)


def _joint(first: Tokens, second: Tokens, end: int) -> tuple[int | None, int]:
    """The tokens of each piece before the place where one goes on as the other; None where there is no such place.

    The place nearest to the middle of the overlap is taken, for each piece is the less sound the nearer it is to its end.
    """
    middle = end - OVERLAP // 2
    places = np.flatnonzero(first.begins >= end - OVERLAP)
    for here in sorted(places.tolist(), key=lambda place: abs(int(first.begins[place]) - middle)):
        there = int(np.searchsorted(second.begins, first.begins[here]))
        if min(here, there) < _ALIKE or there + _ALIKE > len(second.ids) or here + _ALIKE > len(first.ids):
            continue
        if first.begins[here - 1] == first.begins[here]:  # several tokens of one character
            continue
        alike = (
            np.array_equal(one[here - _ALIKE : here + _ALIKE], other[there - _ALIKE : there + _ALIKE])
            for one, other in zip(first, second, strict=True)
        )
        if all(alike):
            return here, there
    return None, 0
