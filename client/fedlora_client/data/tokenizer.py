"""The one place of the client that opens a tokenizer."""

from __future__ import annotations

from pathlib import Path

from fedlora.base.tokenizer import plain_tokenizer
from tokenizers import Tokenizer


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack, or of a checkpoint. Raises PackError where its file is damaged."""
    return plain_tokenizer(Tokenizer.from_file, directory)
