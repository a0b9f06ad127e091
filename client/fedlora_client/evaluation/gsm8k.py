"""GSM8K's rule for generated answers: the number after "####" is the answer (Cobbe et al., arXiv:2110.14168).

    strict      the first number after "#### "
    flexible    the last number of the answer, wherever it stands

Patterns, and what is left out of both sides before they are compared, are those of lm-eval 0.4's task gsm8k.
"""

from __future__ import annotations

import re

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NONE = "[invalid]"
MARK = "#### "  # of a reference: what follows is its answer
ENDS = ("Question:", "</s>", "<|im_end|>")  # texts that end a generated answer


def strict(text: str) -> str:
    """The number that an answer gives as its own; one that is none where it gives none."""
    found = _STRICT.findall(text)
    return found[0].strip() if found else _NONE


def flexible(text: str) -> str:
    """The last number in an answer."""
    found = _FLEXIBLE.findall(text)
    return next(one for one in found[-1] if one).strip() if found else _NONE


def is_match(answer: str, reference: str) -> bool:
    """Whether a number is that of the reference, which may be a whole solution."""
    return _compared(answer) == _compared(reference)


def _compared(text: str) -> str:
    """What is compared: without `,`, `$`, all up to the last mark, and the dot at the end; in small letters.

    lm-eval's patterns for it are r",", r"\\$", r"(?s).*#### " and r"\\.$"; the third takes the square of a text's length.
    """
    text = text.replace(",", "").replace("$", "").rpartition(MARK)[2]
    line = text.removesuffix("\n")  # the pattern's end is before a last line break, too
    return (line.removesuffix(".") + text[len(line) :]).lower()
