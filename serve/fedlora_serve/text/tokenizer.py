"""The tokenizer of a base pack, and a text's tokens: no more of them are made than anybody has a use for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlora.base.tokenizer import begun, library_errors, plain_tokenizer
from fedlora.errors import ConfigError
from fedlora.family import DecoderShape
from tokenizers import Tokenizer

_LIKELY_CHARACTERS = 16  # of a token, at most; one of more is looked for in a longer part of the text
_LONGER = 4  # times


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack. Raises PackError where its file is damaged."""
    return plain_tokenizer(Tokenizer.from_buffer, directory)


def prompt_tokens(
    tokenizer: Tokenizer,
    shape: DecoderShape,
    prompt: str,
    *,
    add_special_tokens: bool = True,
    what: str = "the prompt",
    at_most: int | None = None,
) -> list[int]:
    """The tokens of a prompt, after those that the tokenizer puts before every text, where that is asked for.

    What it puts after a text is left out: a prompt goes on. `at_most` and what it raises are those of `tokens_of`.
    """
    tokens = tokens_of(tokenizer, prompt, add_special_tokens=False, what=what, at_most=at_most)
    return begun(shape, tokens) if add_special_tokens else tokens


def tokens_of(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, what: str = "the text", at_most: int | None = None
) -> list[int]:
    """The tokens of `text`; where it has many more than `at_most`, those of a part of it, still more than twice as many.

    Raises ConfigError where the text has half of a UTF-16 pair, which is no character; PackError where the library fails.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is not UTF-8 text; expected whole characters") from None
    text = enough_of(tokenizer, text, at_most) if at_most is not None else text
    return _encoded(tokenizer, text, add_special_tokens=add_special_tokens)


def enough_of(tokenizer: Tokenizer, text: str, tokens: int, *, from_end: bool = False) -> str:
    """A beginning (or an end) of the text that has more than twice so many tokens; the whole text where none is found.

    A text of 2 MB costs what its beginning costs, where that is too long already. Twice, because where the text is cut
    its last tokens may be others.
    """
    size = max(1, tokens) * _LIKELY_CHARACTERS
    while size < len(text):
        part = text[-size:] if from_end else text[:size]
        if len(_encoded(tokenizer, part, add_special_tokens=False)) > 2 * tokens:
            return part
        size *= _LONGER
    return text


def _encoded(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    with library_errors():
        # `encode` would let no other thread run meanwhile.
        [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids


def decoded(tokenizer: Tokenizer, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of tokens. Raises PackError where the library fails."""
    with library_errors("the base's tokenizer fails at an answer"):
        text: str = tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        return text
