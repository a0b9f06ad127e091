"""A long text is read in pieces: its tokens, and where they stand, are those of the whole text read at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from fedlora_client.data import tokenizer as tokenizer_module
from fedlora_client.data.tokenizer import encoded, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from tests.client.data.test_continuation import ENDS
from tests.tiny.tokenizer_kinds import KINDS, TEXT, write_tokenizer

WORDS = [*ENDS, *" ".join(TEXT).split(" "), "\n", " "]
FAMILIES = [
    "bytes, no processor",
    "SentencePiece, legacy",
    "SentencePiece, Gemma",
    "Unigram, eos (T5)",
    "WordPiece, template",
]
LONG = st.lists(st.sampled_from(WORDS), min_size=150, max_size=400)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    return cache(lambda kind: write_tokenizer(kind, tmp_path_factory.mktemp("tokenizer")))


def whole(tokenizer: Tokenizer, text: str) -> Encoding:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=15)
@given(words=LONG)
def test_the_tokens_of_pieces_are_those_of_the_whole_text(
    opened: Callable[[str], Tokenizer], kind: str, words: list[str]
) -> None:
    tokenizer, text = opened(kind), "".join(words)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenizer_module, "PIECE", 300)
        patched.setattr(tokenizer_module, "OVERLAP", 150)
        tokens, ids = encoded(tokenizer, text), token_ids(tokenizer, text)
    expected = whole(tokenizer, text)
    assert tokens.ids.tolist() == ids.tolist() == expected.ids
    assert list(zip(tokens.begins.tolist(), tokens.ends.tolist(), strict=True)) == expected.offsets


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_text_of_several_pieces_of_their_own_size_too(opened: Callable[[str], Tokenizer], kind: str) -> None:
    chance = random.Random(3)
    text = "".join(chance.choice(WORDS) for _ in range(70_000))[: 3 * tokenizer_module.PIECE + 1000]
    assert len(text) > 3 * tokenizer_module.PIECE
    expected = whole(opened(kind), text)
    tokens = encoded(opened(kind), text)
    assert tokens.ids.tolist() == expected.ids
    assert np.array_equal(np.stack([tokens.begins, tokens.ends], 1), np.array(expected.offsets))


@pytest.mark.parametrize("word", ["a", "ab", "é", "東", " ", "\n", "👍🏽"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_text_without_a_place_to_join_pieces_is_read_to_its_end(
    opened: Callable[[str], Tokenizer], kind: str, word: str
) -> None:
    text = word * 20_000
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenizer_module, "PIECE", 4000)
        patched.setattr(tokenizer_module, "OVERLAP", 400)
        tokens = encoded(opened(kind), text)
    if not len(tokens.ids):  # white space is nothing to some
        assert not whole(opened(kind), text).ids
        return
    assert (np.diff(tokens.begins) >= 0).all()
    assert tokens.begins[0] <= 1 or not word.strip()
    assert tokens.ends[-1] == len(text)
    assert len(tokens.ids) <= len(text.encode()) + 100


def test_no_piece_is_longer_than_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(7)  # pieces that overlap never have a border in common
    encode = tokenizer_module.encoding_of

    def seen(t: Tokenizer, text: str) -> Encoding:
        asked.append(len(text))
        return encode(t, text)

    monkeypatch.setattr(tokenizer_module, "encoding_of", seen)
    monkeypatch.setattr(tokenizer_module, "PIECE", 1000)
    monkeypatch.setattr(tokenizer_module, "OVERLAP", 100)
    tokens = encoded(tokenizer, "a" * 10_500)
    assert max(asked) == 1000
    assert (tokens.begins[0], tokens.ends[-1]) == (0, 10_500)
    assert tokens.begins[1:].tolist() == tokens.ends[:-1].tolist()  # no character is lost, none read twice
