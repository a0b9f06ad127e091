"""Where an answer stops: at strings, at special tokens, at tokens by number; never before so many tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fedlora_serve.text.answer_text import AnswerText
from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.special_tokens import special_tokens
from fedlora_serve.text.text_stream import TextStream
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from tests.tiny.tokenizer import BOS, EOS, byte_tokenizer

END, START, THINK = "<|im_end|>", "<|im_start|>", "<think>"


def chat_tokenizer() -> Tokenizer:
    """Bytes, with two special tokens of chats and one that is a part of the text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    tokenizer.add_tokens([AddedToken(THINK, special=False)])
    return tokenizer


CHATS = chat_tokenizer()
SPECIAL = special_tokens(CHATS)
NUMBER = {text: token for token, text in SPECIAL.items()}


def ids(text: str, tokenizer: Tokenizer = CHATS) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def answer(tokens: Sequence[int], prompt: Sequence[int] = (BOS,), tokenizer: Tokenizer = CHATS, **how: Any) -> str:
    """The text of an answer of these tokens, and where it has ended before the last of them a stroke for each left."""
    stream = AnswerText(Sampling(**how), tokenizer, prompt, [EOS])
    text = ""
    for place, token in enumerate(tokens):
        text += stream.push(token)
        if stream.has_ended:
            return text + stream.finish() + "|" * (len(tokens) - 1 - place)
    return text + stream.finish()


def test_a_special_token_is_a_stop_string_though_the_text_is_without_it() -> None:
    tokens = [*ids("hello"), NUMBER[END], *ids("more")]
    assert answer(tokens) == "hellomore"
    assert answer(tokens, stop=(END,)) == "hello||||"
    assert answer(tokens, stop=(END, "ell")) == "h||||||"
    assert answer(tokens, stop=(f"lo{END}",)) == "hel||||"
    assert answer(tokens, stop=(f"{END}mo",)) == "hello||"
    assert answer(tokens, stop=(f"{END}x", START)) == "hellomore"
    assert answer(tokens, stop=("im_end", "<|", "|>")) == "hellomore"  # it is no letters
    assert answer(tokens, stop=("lom",)) == "hel|||"


def test_letters_that_spell_a_special_token_stop_as_it_does() -> None:
    assert answer(ids("<|im_") + ids("end|> x"), stop=(END,)) == "||"


def test_a_text_with_special_tokens_stops_at_parts_of_them_too() -> None:
    tokens = [*ids("hello"), NUMBER[END], *ids("more")]
    assert answer(tokens, skip_special_tokens=False) == f"hello{END}more"
    assert answer(tokens, skip_special_tokens=False, stop=(END,)) == "hello||||"
    assert answer(tokens, skip_special_tokens=False, stop=("im_end",)) == "hello<|||||"
    assert answer(tokens, stop=(END,), include_stop_str_in_output=True) == f"hello{END}||||"


def test_a_token_of_the_text_is_a_stop_string_like_others() -> None:
    assert answer(ids(f"a{THINK}b"), stop=(THINK,)) == "a|"


def test_a_stop_by_number_ends_before_it_or_after_it() -> None:
    tokens = [*ids("ab"), NUMBER[END], *ids("c")]
    assert answer(tokens, stop_token_ids=(NUMBER[END],)) == "ab|"
    assert answer(tokens, stop_token_ids=tuple(ids("b"))) == "a||"
    assert answer(tokens, stop_token_ids=tuple(ids("b")), include_stop_str_in_output=True) == "ab||"
    assert answer(tokens, stop_token_ids=(NUMBER[END],), include_stop_str_in_output=True) == "ab|"
    shown: dict[str, Any] = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    assert answer(tokens, stop_token_ids=(NUMBER[END],), **shown) == f"ab{END}|"
    assert answer([*ids("ab"), EOS, *ids("c")], ignore_eos=True, stop_token_ids=(EOS,)) == "ab|"
    assert answer([*ids("ab"), EOS, *ids("c")], ignore_eos=True) == "abc"
    assert answer([*ids("ab"), EOS, *ids("c")], **shown) == "ab</s>|"


def test_nothing_ends_an_answer_before_it_has_so_many_tokens() -> None:
    assert answer([*ids("ab"), EOS, *ids("c"), EOS], min_tokens=2) == "ab||"
    assert answer([*ids("ab"), EOS, *ids("c"), EOS], min_tokens=3) == "abc"
    assert answer(ids("abab"), stop=("b",), min_tokens=1) == "a||"
    assert answer(ids("abab"), stop=("b",), min_tokens=2) == "aba"
    assert answer(ids("abab"), stop=("bab",), min_tokens=3) == "a"  # it is complete with the fourth
    assert answer(ids("abab"), stop=("ab", "abab"), min_tokens=3) == ""
    assert answer([*ids("a"), NUMBER[END], *ids("b"), NUMBER[END]], stop=(END,), min_tokens=3) == "ab"


def test_the_tokens_that_end_an_answer_alone_are_known_before_it_begins() -> None:
    how = Sampling(stop=(END, f"x{START}", "a"), stop_token_ids=(7,))
    assert AnswerText(how, CHATS, [BOS], [EOS]).ends == {EOS, 7, NUMBER[END]}
    assert AnswerText(Sampling(ignore_eos=True), CHATS, [BOS], [EOS]).ends == set()


# What comes, and what stops it: letters and special tokens of these.
UNITS = st.sampled_from(["a", "b", "ab", END, START, "<s>"])
STRINGS = st.lists(UNITS | st.just("<|im"), min_size=1, max_size=3).map("".join)


def whole(tokens: Sequence[int], stop: Sequence[str], *, skip: bool, include: bool, least: int) -> tuple[str, bool]:
    """(the answer, whether it was stopped), by looking at all that comes at once."""
    shown, units, ends_shown, ends_units = "", list[str](), [0], [0]  # and how long both are after each token
    widths = [0]  # of the shown text, after each unit
    for token in tokens:
        text = CHATS.decode([token], skip_special_tokens=skip)
        shown += text
        for unit in [SPECIAL[token]] if token in SPECIAL else text:
            units.append(unit)
            widths.append(widths[-1] + (len(text) if token in SPECIAL else 1))
        ends_shown.append(len(shown))
        ends_units.append(len(units))
    if len(tokens) <= least:
        return shown, False
    split = re.compile("|".join(map(re.escape, (END, START, "<s>", "</s>"))))
    found = list[tuple[int, int, str]]()
    for string in stop:
        for start in range(len(shown)):
            if shown.startswith(string, start) and start + len(string) > ends_shown[least]:
                found.append((start + len(string), start, string))
        parts = [
            part
            for piece in re.split(f"({split.pattern})", string)
            for part in ([piece] if split.fullmatch(piece) else piece)
        ]
        if any(map(split.fullmatch, parts)):
            for start in range(len(units) - len(parts) + 1):
                end = start + len(parts)
                if units[start:end] == parts and end > ends_units[least]:
                    found.append((widths[end], widths[start], string))
    if not found:
        return shown, False
    _, start, string = min(found)
    return shown[:start] + (string if include else ""), True


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(UNITS, max_size=8),
    stop=st.lists(STRINGS, min_size=1, max_size=3),
    skip=st.booleans(),
    include=st.booleans(),
    least=st.integers(0, 6),
)
def test_an_answer_is_cut_where_the_whole_of_it_says(
    pieces: list[str], stop: list[str], skip: bool, include: bool, least: int
) -> None:
    tokens = [token for piece in pieces for token in ([NUMBER[piece]] if piece in NUMBER else ids(piece))]
    stream = TextStream(CHATS, [BOS], stop, skip_special_tokens=skip, includes_stop=include, min_tokens=least)
    expected, is_stopped = whole(tokens, stop, skip=skip, include=include, least=least)
    sent = ""
    for token in tokens:
        sent += stream.push(token)
        assert expected.startswith(sent)
    assert (sent + stream.finish(), stream.stopped) == (expected, is_stopped)


texts = st.lists(st.sampled_from(["a", " b", "é", "日", "\N{GRINNING FACE}", START, END, "\n"]), max_size=8).map(
    "".join
)


@settings(deadline=None)
@given(prompt=texts, text=texts)
def test_with_special_tokens_the_text_is_the_librarys(prompt: str, text: str) -> None:
    before, tokens = [BOS, *ids(prompt)], ids(text)
    ours, theirs = TextStream(CHATS, before, skip_special_tokens=False), DecodeStream(before, skip_special_tokens=False)
    sent = ""
    for token in tokens:
        piece = ours.push(token)
        assert piece == (theirs.step(CHATS, token) or "")
        sent += piece
    said = CHATS.decode([*before, *tokens], skip_special_tokens=False)
    assert CHATS.decode(before, skip_special_tokens=False) + sent + ours.finish() == said


@pytest.mark.parametrize("skip", [True, False])
def test_half_a_character_before_a_special_token_that_stops_is_left_out(skip: bool) -> None:
    half = ids("a日")[:-1]
    assert answer([*half, NUMBER[END], *ids("b")], stop=(END,), skip_special_tokens=skip) == "a|"


@pytest.mark.parametrize("text", ["<\uff5cend▁of▁sentence\uff5c>", "[END]", "é", "▁", "<|a b|>"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_special_token_of_any_letters_stops(shared: Path, text: str, skip: bool) -> None:
    stories = shared / "models" / "stories260K" / "tokenizer.json"
    for tokenizer in (byte_tokenizer(), *([Tokenizer.from_file(str(stories))] if stories.is_file() else [])):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        special = tokenizer.token_to_id(text)
        assert special is not None
        tokens = [*ids("a", tokenizer), special, *ids("b", tokenizer)]
        left = "|" * len(ids("b", tokenizer))
        assert answer(tokens, [], tokenizer, stop=(text,), skip_special_tokens=skip) == f"a{left}"
