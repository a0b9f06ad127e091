"""A pack's tokenizer, opened in one way by all who have the library `tokenizers`, which core itself does not need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from fedlora.base.pack import TOKENIZER
from fedlora.errors import PackError


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
        raise PackError(f"{directory / TOKENIZER}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
