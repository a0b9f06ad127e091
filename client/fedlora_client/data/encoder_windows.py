"""Texts with labels become windows of an encoder: one text each, padded at its end.

inputs   | [CLS] t o p [SEP] . . . |      with the special tokens that the tokenizer's own post-processor adds
targets  | label _ _ _ _     _ _ _ |      _ IGNORED
starts   |   0   0 0 0 0     5 6 7 |      padding begins at its own place
"""

# M windows of T tokens

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from fedlora.data.examples import Example, Labelled
from fedlora.errors import ConfigError, DataError
from fedlora.family import EncoderShape
from tokenizers import Encoding, Tokenizer

from fedlora_client.data.encoding import IGNORED, checked_ids
from fedlora_client.data.tokenizer import PIECE, encoding_of
from fedlora_client.data.windows import Windows

_MAKE_HEAD = (
    "make a head for the data's labels: python tools/classifier/classifier.py ENCODER -o DIR --labels A,B, "
    "then fedlora pack DIR"
)
_MOST_CHARACTERS = 1 << 22  # of a text that are looked at


def label_windows(
    examples: Sequence[Example], tokenizer: Tokenizer, shape: EncoderShape, length: int, where: str
) -> Windows:
    """The examples in windows of `length` tokens; a text that is longer is cut, its special tokens stay.

    Raises ConfigError where `length` exceeds the base's context or leaves no room for a text, or the base has no labels;
    DataError for an example without a label, or with one that the base does not have; PackError where the tokenizer is
    another model's.
    """
    if length > shape.max_positions:
        raise ConfigError(f"train.sequence_length is {length}; the base's context is {shape.max_positions} tokens")
    if not shape.labels:
        raise ConfigError(
            f"{where}: the base ({shape.model_type}) has no classification head, so it learns no labels; pack a model "
            f"ForSequenceClassification, or {_MAKE_HEAD}"
        )
    if len(shape.labels) == 1:
        raise ConfigError(
            f"{where}: the head has one output, so it is one of regression, and there is no label to learn or to measure; "
            "take a base or an adapter whose head has two labels or more"
        )
    if not examples:
        raise DataError(f"{where}: no text to train or measure on; give this device data, or leave it out of the run")
    special = tokenizer.num_special_tokens_to_add(False)
    if length <= special:
        raise ConfigError(
            f"train.sequence_length is {length}; the base's tokenizer adds {special} special tokens to each text, so it "
            f"must be {special + 1} or more"
        )
    size = (len(examples), length)
    inputs, targets = torch.full(size, shape.pad_token_id), torch.full(size, IGNORED)
    starts = torch.arange(length).repeat(len(examples), 1)
    truncated: list[int] = []
    for row, example in enumerate(examples):
        here = f"{where}: example {row + 1}"
        if not isinstance(example, Labelled):
            raise DataError(
                f"{here}: it has no label, and the base is an encoder ({shape.model_type}); give each record text and "
                "label, or train on the pack of a decoder"
            )
        if example.has_pair:
            raise DataError(f"{here}: text_pair is not supported: a label belongs to one text; join the two in text")
        targets[row, 0] = label_number(example.label, shape.labels, here)
        encoding, is_whole = _beginning(tokenizer, example.text, length)
        if len(encoding.ids) > length - special or not is_whole:
            truncated.append(row)
        encoding.truncate(length - special)
        ids = checked_ids(tokenizer.post_process(encoding).ids, shape.vocab_size, here)
        if not len(ids):
            raise DataError(f"{here}: its text gives no token; remove the record or give it text")
        inputs[row, : len(ids)], starts[row, : len(ids)] = torch.from_numpy(ids), 0
    return Windows(
        inputs, targets, starts, examples=len(examples), truncated=len(truncated), truncated_at=tuple(truncated),
        spans=np.arange(len(examples))[:, None].repeat(2, 1),
    )  # fmt: skip


def _beginning(tokenizer: Tokenizer, text: str, tokens: int) -> tuple[Encoding, bool]:
    """A beginning of the text with more than so many tokens, where it has them in 4 Mi characters, and whether it is all.

    Twice as many, because where a text is cut its last tokens may be others.
    """
    size = PIECE
    while True:
        encoding = encoding_of(tokenizer, text[:size])
        if size >= len(text) or size >= _MOST_CHARACTERS or len(encoding.ids) > 2 * tokens:
            return encoding, size >= len(text)
        size *= 8


def label_number(label: object, labels: Sequence[str], where: str) -> int:
    """The number of a label, which is given by its name or its number. Raises DataError where there is none such."""
    number = label
    if isinstance(label, str):  # a table has text only: a number that is no label's name is a number
        number = labels.index(label) if label in labels else int(label) if re.fullmatch(r"[0-9]{1,9}", label) else label
    if type(number) is not int or not 0 <= number < len(labels):
        known = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
        raise DataError(
            f"{where}: label {label!r:.60} is none of the model's {len(labels)}; expected {known}, or a number from 0 to "
            f"{len(labels) - 1}; name the field that has these (--set data.fields.label=FIELD), or {_MAKE_HEAD}"
        )
    return number
