"""The one place of the client that opens a tokenizer, and the one that gives it a text."""

from __future__ import annotations

from pathlib import Path

from fedlora.base.tokenizer import library_errors, plain_tokenizer
from tokenizers import Encoding, Tokenizer


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack, or of a checkpoint. Raises PackError where its file is damaged."""
    return plain_tokenizer(Tokenizer.from_buffer, directory)


def encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    """The text's tokens and where they stand in it, no special ones added. Raises PackError where the library fails."""
    with library_errors():
        return tokenizer.encode(text, add_special_tokens=False)


def decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The text of tokens, special ones included. Raises PackError where the library fails."""
    with library_errors():
        text: str = tokenizer.decode(tokens, skip_special_tokens=False)
        return text
