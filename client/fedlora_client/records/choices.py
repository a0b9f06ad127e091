"""A record of multiple choice: a prompt, its choices, and which of them is right.

    "choices": ["3", "4"]           or as ARC has them: {"text": ["3", "4"], "label": ["A", "B"]}
    "answer": 1, "4", "B", "1"      a number from 0, a choice itself, its label or its letter

An answer that is a text is looked for among the labels, then among the choices, then as a letter from A, then as a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedlora.counted import counted
from fedlora.data.examples import MultipleChoice
from fedlora.errors import DataError

from fedlora_client.records.json_values import kind, text_field

_LETTER = re.compile(r"[A-Za-z]")
_NUMBER = re.compile(r"[0-9]{1,3}")


def multiple_choice(prompt: str, choices: object, answer: object) -> MultipleChoice:
    """The question of a record's values. Raises DataError, naming the field."""
    labels: list[str] = []
    if isinstance(choices, dict):
        labels = _texts(choices.get("label"), "choices.label")
        choices = choices.get("text")
        if not isinstance(choices, list) or len(choices) != len(labels):
            raise DataError(
                f"choices.text and choices.label must be lists of one length, got {kind(choices)} and "
                f"{counted(len(labels), 'label')}"
            )
    texts = _texts(choices, "choices")
    return MultipleChoice(prompt, tuple(texts), _number(answer, texts, labels))


def _texts(value: object, name: str) -> list[str]:
    if not isinstance(value, list):
        raise DataError(f"{name} must be a list of texts, got {kind(value)}")
    return [text_field({name: one}, name) for one in value]


def _number(answer: object, texts: Sequence[str], labels: Sequence[str]) -> int:
    """Which choice is right, from 0."""
    if type(answer) is int and 0 <= answer < len(texts):
        return answer
    if isinstance(answer, str):
        for known in (labels, texts):
            if known.count(answer) == 1:
                return known.index(answer)
        if not labels and answer not in texts:
            number = int(answer) if _NUMBER.fullmatch(answer) else -1
            number = ord(answer.upper()) - ord("A") if _LETTER.fullmatch(answer) else number
            if 0 <= number < len(texts):
                return number
    known = ", ".join(labels or (f"0 to {len(texts) - 1}",))
    raise DataError(
        f"answer must be one of the choices: its label, its number from 0 or its text ({known}), got {kind(answer)}"
    )
