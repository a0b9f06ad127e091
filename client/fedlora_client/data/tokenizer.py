"""The one place of the client that opens a tokenizer."""

from __future__ import annotations

from pathlib import Path

from fedlora.base.pack import TOKENIZER
from fedlora.errors import PackError
from tokenizers import Tokenizer


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack, or of a checkpoint. Raises PackError where its file is damaged."""
    try:
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
    except Exception as error:  # the library raises bare Exception
        raise PackError(f"{directory / TOKENIZER}: not a tokenizer: {error}") from None
    # A tokenizer's file may tell it to cut or to fill every text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
