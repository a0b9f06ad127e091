"""The text of one answer as it is sent: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from fedlora_serve.text.stop_strings import StopStrings
from fedlora_serve.text.token_text import TokenText


class TextStream:
    """Tokens in, text out. All that it gives, put together, is the answer up to its first stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        """`prompt` are its tokens: how a text goes on depends on how it ends."""
        self._text, self._stop = TokenText(tokenizer, prompt), StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: the answer has ended, and more tokens add nothing."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """The text that may be sent now that `token` has come: without a part of a character or of a stop string."""
        return "" if self.stopped else self._stop.push(self._text.push(token))

    def finish(self) -> str:
        """What is left when the answer ends here. Half a character at its end is left out. (vLLM sends U+FFFD for it.)"""
        return "" if self.stopped else self._stop.push(self._text.finish()) + self._stop.finish()
