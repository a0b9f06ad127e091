"""Text becomes training windows of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fedlora.errors import ConfigError, DataError, PackError
from fedlora.family import DecoderShape
from fedlora.pack import TOKENIZER
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100  # the target of a padded position, which the loss leaves out


@dataclass(frozen=True, slots=True)
class Windows:
    """M windows of T tokens: what is read, and the token that follows each."""

    inputs: Tensor  # int64 [M, T]
    targets: Tensor  # int64 [M, T], IGNORED where padded

    def __len__(self) -> int:
        return len(self.inputs)


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base pack. Raises PackError where its file is damaged."""
    try:
        return Tokenizer.from_file(str(directory / TOKENIZER))
    except Exception as error:  # the library raises bare Exception
        raise PackError(f"{directory / TOKENIZER}: not a tokenizer: {error}") from None


def make_windows(texts: Sequence[str], tokenizer: Tokenizer, shape: DecoderShape, length: int, where: str) -> Windows:
    """Each text begins with the base's bos token; all in a row are cut every `length` tokens, the last one padded.

    Raises ConfigError where `length` exceeds the base's context, DataError where there is no text, PackError where the
    tokenizer is another model's.
    """
    if length > shape.max_positions:
        raise ConfigError(f"train.sequence_length is {length}; the base's context is {shape.max_positions} tokens")
    row: list[int] = []
    text_tokens = 0
    begin = [] if shape.bos_token_id is None else [shape.bos_token_id]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        row += begin + ids
        text_tokens += len(ids)
    if row and max(row) >= shape.vocab_size:
        raise PackError(
            f"{where}: the tokenizer gave id {max(row)}, the base's vocabulary has {shape.vocab_size}: they do not belong "
            "together; pack the model again with its own tokenizer"
        )
    if not text_tokens or len(row) < 2:
        raise DataError(f"{where}: no text to train or measure on; give this device data, or leave it out of the run")
    inputs, targets = torch.tensor(row[:-1]), torch.tensor(row[1:])
    padding = -len(inputs) % length
    inputs, targets = pad(inputs, (0, padding), value=0), pad(targets, (0, padding), value=IGNORED)
    return Windows(inputs.view(-1, length), targets.view(-1, length))
