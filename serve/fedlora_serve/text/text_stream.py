"""The text of one answer as it is sent: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from fedlora_serve.text.special_tokens import SpecialSymbols
from fedlora_serve.text.stop_strings import StopStrings
from fedlora_serve.text.token_text import TokenText


class TextStream:
    """Tokens in, text out. All that it gives, put together, is the answer up to its first stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        includes_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """`prompt` are its tokens: how a text goes on depends on how it ends.

        The text is without special tokens where `skip_special_tokens`, but a stop string that has some is found where they
        come. It ends with the stop string where `includes_stop`, and with none that is complete within `min_tokens`.
        """
        self._skip_special_tokens, self._min_tokens = skip_special_tokens, min_tokens
        self._text = TokenText(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
        self._symbols = SpecialSymbols(tokenizer, stop) if stop else None
        written = self._symbols.written if self._symbols else None
        self._stop = StopStrings(stop, with_symbols=written, includes_stop=includes_stop)
        self._count = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: the answer has ended, and more tokens add nothing."""
        return self._stop.stopped

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The special tokens that alone are a stop string."""
        return self._symbols.alone if self._symbols else frozenset()

    def push(self, token: int) -> str:
        """The text that may be sent now that `token` has come: without a part of a character or of a stop string."""
        if self.stopped:
            return ""
        self._count += 1
        symbol = self._symbols.symbol(token) if self._symbols else ""
        is_written = bool(symbol) and not self._skip_special_tokens
        return self._stop.push(self._text.push(token), symbol=symbol, is_symbols=is_written, counts=self._counts)

    def finish(self) -> str:
        """What is left when the answer ends here. Half a character at its end is left out. (vLLM sends U+FFFD for it.)"""
        if self.stopped:
            return ""
        return self._stop.push(self._text.finish(), counts=self._counts) + self._stop.finish()

    @property
    def _counts(self) -> bool:
        return self._count > self._min_tokens
