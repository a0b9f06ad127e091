"""A pack's tokenizer, opened in one way by all who have the library `tokenizers`, which core itself does not need, and what
is put around the tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from fedlora.base.pack import TOKENIZER
from fedlora.errors import PackError
from fedlora.family import DecoderShape


class CutsAndPads(Protocol):
    """What a tokenizer's file may tell it to do with every text."""

    def no_truncation(self) -> None: ...

    def no_padding(self) -> None: ...


T = TypeVar("T", bound=CutsAndPads)


def plain_tokenizer(from_file: Callable[[str], T], directory: Path) -> T:
    """The tokenizer of a base pack, or of a checkpoint; it neither cuts nor pads, whatever its file says.

    `from_file` is the library's `Tokenizer.from_file`. Raises PackError where the file is damaged.
    """
    try:
        tokenizer = from_file(str(directory / TOKENIZER))
    except Exception as error:  # the library raises bare Exception
        raise PackError(f"{directory / TOKENIZER}: not a tokenizer: {error}; copy the file again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def begun(shape: DecoderShape, ids: Sequence[int]) -> list[int]:
    """The tokens of a text, after those that its tokenizer puts before it, unless the text spells them itself.

    A prompt is such a text: what the tokenizer puts after a whole text does not stand between it and what follows.
    """
    before = list(shape.tokens_before_text)
    return [*ids] if [*ids[: len(before)]] == before else [*before, *ids]


def ended(shape: DecoderShape, ids: Sequence[int]) -> list[int]:
    """The tokens of a document, with its end, unless it spells that itself.

    The end is what the tokenizer puts after a text; where no end of the base is in that, the first of them comes after it.
    """
    ends, after = shape.eos_token_ids, shape.tokens_after_text
    if ids and ids[-1] in (*ends, *after[-1:]):
        return [*ids]
    return [*ids, *after, *(() if set(after) & set(ends) else ends[:1])]
