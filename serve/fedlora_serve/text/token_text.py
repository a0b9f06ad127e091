"""The text of tokens as they come, whole characters only.

A token is no text by itself: it may be a part of a character, and whether it begins with a space may depend on what stands
before it. So the tokens since the last whole character are decoded together with those of the text before, and what is
new is the difference. For a tokenizer over bytes that is the text of all tokens decoded at once.

With byte fallback the library decodes bytes side by side all or none: a byte that belongs to no character would take
back the characters before it, which were sent. They stay, and the bytes after them become U+FFFD. (The library's own
DecodeStream raises an error there, and gives the prompt again where it ends in half a character.)
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from fedlora_serve.text.tokenizer import decoded

_HALF = "\ufffd"  # what the library writes for bytes that are no character, or not yet
_PROMPT_TOKENS = 16  # of the prompt's end that are read at first
_WAITING_TOKENS = 64  # without the end of a character: they are not going to be one


class TokenText:
    """The text that tokens add to that of a prompt."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._before, self._before_text = self._end_of(prompt)
        self._waiting: list[int] = []  # their text is not told yet

    def push(self, token: int) -> str:
        """The text that `token` adds; empty while its last character is not whole."""
        self._waiting.append(token)
        text = self._decode([*self._before, *self._waiting])
        if text.endswith(_HALF) and len(self._waiting) < _WAITING_TOKENS:
            return ""
        new = self._new_text(text)
        if new:  # a token without a text, a special one, is no context for the next
            last = self._decode(self._waiting)
            # A space alone has no text either: at the beginning it is stripped.
            before = (self._waiting, last) if last else self._end_of([*self._before, *self._waiting])
            (self._before, self._before_text), self._waiting = before, []
        return new

    def finish(self) -> str:
        """What is left when no token follows, without the bytes at its end that are no character."""
        return self._new_text(self._decode([*self._before, *self._waiting])).rstrip(_HALF) if self._waiting else ""

    def _new_text(self, text: str) -> str:
        """What `text`, of all tokens here, has after that of those before."""
        if text.startswith(self._before_text):
            return text[len(self._before_text) :]
        whole = self._before_text.rstrip(_HALF)
        if text.startswith(whole):  # the half of a character after it has become whole
            return text[len(whole) :]
        return self._decode(self._waiting)  # bytes that take back the characters before them

    def _end_of(self, prompt: Sequence[int]) -> tuple[list[int], str]:
        """The last tokens of a prompt, as many as it takes to have a text that ends with a whole character; that text."""
        count = _PROMPT_TOKENS
        while True:
            tokens = list(prompt[-count:])
            text = self._decode(tokens)
            if count >= len(prompt) or (text and not text.endswith(_HALF)):
                return tokens, text
            count *= 4

    def _decode(self, tokens: list[int]) -> str:
        return decoded(self._tokenizer, tokens, skip_special_tokens=self._skip_special_tokens)
