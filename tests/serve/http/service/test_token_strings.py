"""The texts and the bytes of single tokens."""

from __future__ import annotations

from fedlora_serve.http.service.token_strings import TokenStrings
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tests.tiny.tokenizer import EOS, byte_tokenizer


def fallback_tokenizer() -> Tokenizer:
    """As Llama 2 has it: a space is a part of the word after it, and bytes stand for characters without a token."""
    symbols = ["<unk>", "a", "▁the", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_a_part_of_a_character_is_its_bytes() -> None:
    tokenizer = byte_tokenizer()
    strings = TokenStrings(tokenizer)
    first, second = tokenizer.encode("é", add_special_tokens=False).ids
    assert strings.text_and_bytes(first) == ("bytes:\\xc3", b"\xc3")
    assert strings.text_and_bytes(second) == ("bytes:\\xa9", b"\xa9")


def test_every_byte_has_its_token() -> None:
    tokenizer = byte_tokenizer()
    strings = TokenStrings(tokenizer)
    found = sorted(known for token in range(256) for known in [strings.text_and_bytes(token)[1]] if known is not None)
    assert found == [bytes([byte]) for byte in range(256)]


def test_a_special_token_has_its_name() -> None:
    assert TokenStrings(byte_tokenizer()).text_and_bytes(EOS) == ("</s>", b"</s>")


def test_the_space_before_a_word_is_a_part_of_its_token() -> None:
    tokenizer = fallback_tokenizer()
    strings = TokenStrings(tokenizer)
    assert strings.text_and_bytes(tokenizer.token_to_id("▁the")) == (" the", b" the")
    assert strings.text_and_bytes(tokenizer.token_to_id("<0xE2>")) == ("bytes:\\xe2", b"\xe2")
