from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fedlora.errors import ConfigError, DataError, PackError
from fedlora.pack import BasePack
from fedlora_client.windows import IGNORED, load_tokenizer, make_windows
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import BOS, byte_tokenizer

TEXTS = ["To be, or not to be", "é", "", "that is the question"]


def row_of(texts: list[str], begin: tuple[int, ...] = (BOS,)) -> list[int]:
    """The tokens in a row, one text after another, by the slow way."""
    tokenizer = byte_tokenizer()
    symbols = sorted(tokenizer.get_vocab(with_added_tokens=False))
    row: list[int] = []
    for text in texts:
        row += begin
        row += [symbols.index(symbol) for symbol in tokenizer.encode(text, add_special_tokens=False).tokens]
    return row


@pytest.mark.parametrize("length", [1, 2, 7, 41, 64])
def test_every_token_after_the_first_is_a_target_once_and_in_order(base: BasePack, length: int) -> None:
    windows = make_windows(TEXTS, byte_tokenizer(), base.shape, length, "here")
    row = row_of(TEXTS)
    targets = windows.targets.flatten().tolist()
    assert [token for token in targets if token != IGNORED] == row[1:]
    assert windows.inputs.flatten().tolist()[: len(row) - 1] == row[:-1]
    assert windows.inputs.shape == windows.targets.shape == (-(-(len(row) - 1) // length), length)
    assert len(windows) == windows.inputs.shape[0]
    # Only the end is padded, with tokens that exist.
    assert all(token == IGNORED for token in targets[len(row) - 1 :])
    assert set(windows.inputs.flatten().tolist()) <= set(range(base.shape.vocab_size))


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=4),
    length=st.integers(1, 64),
)
def test_any_texts_make_windows_that_hold_each_token_once(base: BasePack, texts: list[str], length: int) -> None:
    windows = make_windows(texts, byte_tokenizer(), base.shape, length, "here")
    targets = [token for token in windows.targets.flatten().tolist() if token != IGNORED]
    assert targets == row_of(texts)[1:]
    assert len(targets) == sum(1 + len(text.encode()) for text in texts) - 1


def test_each_text_begins_with_bos_and_gets_no_other_special_token(base: BasePack) -> None:
    windows = make_windows(["ab", "c"], byte_tokenizer(), base.shape, 4, "here")
    row = [windows.inputs[0, 0].item(), *windows.targets.flatten().tolist()]
    assert [place for place, token in enumerate(row) if token == BOS] == [0, 3]
    assert len(row) == 5  # <s> a b <s> c: the tokenizer's own template adds <s> and </s>


def test_a_base_without_bos_gets_none(base: BasePack) -> None:
    shape = dataclasses.replace(base.shape, bos_token_id=None)
    windows = make_windows(["ab", "c"], byte_tokenizer(), shape, 2, "here")
    assert [windows.inputs[0, 0].item(), *windows.targets.flatten().tolist()] == row_of(["ab", "c"], ())


def test_windows_longer_than_the_context_are_refused(base: BasePack) -> None:
    make_windows(["ab"], byte_tokenizer(), base.shape, base.shape.max_positions, "here")
    with pytest.raises(ConfigError, match=r"train\.sequence_length is 65; the base's context is 64 tokens"):
        make_windows(["ab"], byte_tokenizer(), base.shape, base.shape.max_positions + 1, "here")


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_refused_by_the_name_of_the_place(base: BasePack, texts: list[str]) -> None:
    with pytest.raises(DataError, match="device kitchen: no text to train or measure on"):
        make_windows(texts, byte_tokenizer(), base.shape, 8, "device kitchen")


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}'])
def test_a_damaged_tokenizer_is_refused_by_the_name_of_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(PackError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


def test_the_tokenizer_of_a_pack_is_the_one_that_was_packed(base: BasePack) -> None:
    text = "a é \N{GRINNING FACE}\n"
    expected = byte_tokenizer().encode(text, add_special_tokens=False).ids
    assert load_tokenizer(base.directory).encode(text, add_special_tokens=False).ids == expected
