"""The tokenizer of a base pack, and a text's tokens."""

from __future__ import annotations

from pathlib import Path

from fedlora.base.tokenizer import begun, plain_tokenizer
from fedlora.errors import ConfigError
from fedlora.family import DecoderShape
from tokenizers import Tokenizer


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack. Raises PackError where its file is damaged."""
    return plain_tokenizer(Tokenizer.from_file, directory)


def prompt_tokens(
    tokenizer: Tokenizer,
    shape: DecoderShape,
    prompt: str,
    *,
    add_special_tokens: bool = True,
    what: str = "the prompt",
) -> list[int]:
    """The tokens of a prompt, after those that the tokenizer puts before every text, where that is asked for.

    What it puts after a text is left out: a prompt goes on. Raises ConfigError as `tokens_of`.
    """
    tokens = tokens_of(tokenizer, prompt, add_special_tokens=False, what=what)
    return begun(shape, tokens) if add_special_tokens else tokens


def tokens_of(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, what: str = "the text") -> list[int]:
    """The tokens of `text`. Raises ConfigError where it has half of a UTF-16 pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is not UTF-8 text; expected whole characters") from None
    # `encode` would let no other thread run meanwhile.
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = encoding.ids
    return ids
