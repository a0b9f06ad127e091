"""The special tokens of a tokenizer, and strings that have some of them.

A special token is one symbol: it is no letters, so no end of one and no beginning of one is found in it. The symbols are
halves of surrogate pairs, which are no characters and stand in no text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer

from fedlora_serve.text.tokenizer import tokens_of

_OTHER = "\ud800"  # all special tokens that the strings do not have
_SYMBOLS = range(0xD801, 0xE000)


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """{token: its text} of those that are no part of the text that they stand in."""
    return {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}


class SpecialSymbols:
    """The special tokens as symbols, and the strings that have some, written with them."""

    def __init__(self, tokenizer: Tokenizer, strings: Iterable[str]) -> None:
        special = special_tokens(tokenizer)
        # The tokenizer itself finds them fast in a string, however many it has.
        found = {
            string: {
                special[token] for token in tokens_of(tokenizer, string, add_special_tokens=False) if token in special
            }
            for string in dict.fromkeys(strings)
        }
        texts = sorted({text for inside in found.values() for text in inside if text}, key=len, reverse=True)
        by_text = {text: chr(symbol) for text, symbol in zip(texts, _SYMBOLS, strict=False)}
        pattern = re.compile("|".join(map(re.escape, by_text)))
        self.written: Mapping[str, str] = {  # {written with symbols: the string}
            pattern.sub(lambda match: by_text[match[0]], string): string for string, inside in found.items() if inside
        }
        self._symbols = {token: by_text.get(text, _OTHER) for token, text in special.items()} if self.written else {}
        # Tokens that alone are one of the strings.
        self.alone = frozenset(token for token, symbol in self._symbols.items() if symbol in self.written)

    def symbol(self, token: int) -> str:
        """The symbol of a special token; empty for any other, and where none of the strings has one."""
        return self._symbols.get(token, "")
