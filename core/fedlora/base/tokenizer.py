"""A pack's tokenizer, opened in one way by all who have the library `tokenizers`, which core itself does not need, and what
is put around the tokens of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from fedlora.base.pack import MAX_TEXT_BYTES, TOKENIZER
from fedlora.base.tokenizer_file import check_tokenizer_text
from fedlora.base.tokenizer_trial import TokenizerEndsProcessError, try_tokenizer
from fedlora.errors import FedloraError, PackError
from fedlora.family import DecoderShape
from fedlora.files.bounded import read_bounded


class CutsAndPads(Protocol):
    """What a tokenizer's file may tell it to do with every text."""

    def no_truncation(self) -> None: ...

    def no_padding(self) -> None: ...


T = TypeVar("T", bound=CutsAndPads)
_PANIC = "PanicException"  # of pyo3, and no Exception
_REMEDY = "pack the model with its own tokenizer.json"
_sound: set[bytes] = set()  # the digests of files that were checked


def plain_tokenizer(from_buffer: Callable[[bytes], T], directory: Path) -> T:
    """The tokenizer of a base pack, or of a checkpoint; it neither cuts nor pads, whatever its file says.

    `from_buffer` is the library's `Tokenizer.from_buffer`: what was checked is what is read. Raises PackError where the
    file is damaged, or tells the library to do what it must not.
    """
    path = directory / TOKENIZER
    try:
        content = read_bounded(path, MAX_TEXT_BYTES)
    except OSError as error:
        raise PackError(f"{path}: cannot be read: {error.strerror}; copy the file again") from None
    if (digest := hashlib.sha256(content).digest()) not in _sound:  # a large one takes a second
        try:
            check_tokenizer_text(content)
        except ValueError as problem:
            raise PackError(f"{path}: not a tokenizer: {problem}; {_REMEDY}") from None
        try:
            try_tokenizer(content, getattr(getattr(from_buffer, "__self__", None), "__module__", None) or "tokenizers")
        except TokenizerEndsProcessError as problem:
            raise PackError(f"{path}: not a sound tokenizer: {problem}; {_REMEDY}") from None
        _sound.add(digest)
    with library_errors(f"{path}: not a tokenizer", _REMEDY):
        tokenizer = from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


@contextmanager
def library_errors(what: str = "the base's tokenizer fails at a text", remedy: str = _REMEDY) -> Iterator[None]:
    """Raises PackError for whatever the library raises inside: bare Exception, and, where its own code fails, what is
    not even that."""
    try:
        yield
    except FedloraError:
        raise
    except Exception as error:
        raise PackError(f"{what}: {str(error) or type(error).__name__:.300}; {remedy}") from None
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise PackError(f"{what}: the library tokenizers fails: {error!s:.300}; {remedy}") from None


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
