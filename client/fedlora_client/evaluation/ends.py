"""Where a generated answer ends: at a token that ends a text, or before a text that it must not go beyond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from fedlora_client.data.tokenizer import decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The tokens and the texts that end an answer."""

    tokenizer: Tokenizer
    tokens: tuple[int, ...]
    texts: tuple[str, ...] = ()

    def are_in(self, answer: Sequence[int]) -> bool:
        """Whether an answer of these tokens is complete."""
        return answer[-1] in self.tokens or any(text in decoded(self.tokenizer, [*answer]) for text in self.texts)

    def text(self, answer: Sequence[int]) -> str:
        """The answer's text, without what ended it."""
        kept = [*answer[:-1]] if answer and answer[-1] in self.tokens else [*answer]
        text = decoded(self.tokenizer, kept)
        for end in self.texts:
            text = text.split(end, 1)[0]
        return text
