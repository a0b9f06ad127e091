"""The text and the bytes of single tokens, for log-probabilities.

A token of a byte-level vocabulary may be a part of a character: its text is then `bytes:\\xe2\\x80`, as OpenAI writes it.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

from tokenizers import Tokenizer

from fedlora_serve.text.tokenizer import decoded, tokens_of

_HALF = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CACHED = 1 << 15
_BEFORE = "a"  # a text before the token, so that a space at its beginning is no beginning of the whole text


def _byte_characters() -> dict[str, int]:
    """{character: byte} of GPT-2's byte-level alphabet: printable bytes are themselves, the others follow 255 in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()


class TokenStrings:
    """What each token of a tokenizer is in an answer; those that were asked for are remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.text_and_bytes = lru_cache(maxsize=_CACHED)(self._text_and_bytes)

    def _text_and_bytes(self, token: int) -> tuple[str, bytes | None]:
        """The token's text, and its bytes, where the vocabulary tells them."""
        text = self._decoded(token)
        if _HALF not in text:
            return text, text.encode()
        known = self._bytes_of(self._tokenizer.id_to_token(token) or "")
        if known is None:
            return text, None
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known), known

    def _decoded(self, token: int) -> str:
        before, before_text = self._before
        text: str = decoded(self._tokenizer, [*before, token])
        if text.startswith(before_text):
            return text[len(before_text) :]
        return decoded(self._tokenizer, [token])

    @cached_property
    def _before(self) -> tuple[list[int], str]:
        tokens = tokens_of(self._tokenizer, _BEFORE, add_special_tokens=False)
        return tokens, decoded(self._tokenizer, tokens)

    @staticmethod
    def _bytes_of(symbol: str) -> bytes | None:
        if byte := _BYTE_TOKEN.fullmatch(symbol):
            return bytes([int(byte[1], 16)])
        if symbol and all(character in _BYTES for character in symbol):
            return bytes(_BYTES[character] for character in symbol)
        return None
