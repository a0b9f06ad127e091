from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fedlora_serve.text import token_text
from fedlora_serve.text.stop_strings import StopStrings
from fedlora_serve.text.text_stream import TextStream
from fedlora_serve.text.token_text import TokenText
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tests.tiny.tokenizer import BOS, EOS, byte_tokenizer

HALF = "\ufffd"
BYTES = byte_tokenizer()


@pytest.fixture(scope="module")
def stories(shared: Path) -> Tokenizer:
    """A tokenizer of pieces with byte fallback: 512 tokens, of which 3 to 258 are bytes."""
    path = shared / "models" / "stories260K" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return Tokenizer.from_file(str(path))


def ids(text: str, tokenizer: Tokenizer = BYTES) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def pieces_of(
    tokens: Sequence[int], prompt: Sequence[int] = (), stop: Sequence[str] = (), tokenizer: Tokenizer = BYTES
) -> list[str]:
    """What a stream gives for each token, and at the end."""
    stream = TextStream(tokenizer, prompt, stop)
    return [*(stream.push(token) for token in tokens), stream.finish()]


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the stop string that is complete first; of those that are complete together, the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


def decoded(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of an answer, from all tokens at once, without the half of a character at its end."""
    whole = str(tokenizer.decode([*prompt, *tokens]))
    return whole[len(tokenizer.decode(list(prompt))) :].rstrip(HALF)


texts = st.text(st.characters(codec="utf-8", exclude_characters=HALF), max_size=12)
stops = st.lists(st.text("ab \n\N{GRINNING FACE}é", min_size=1, max_size=4), max_size=3)
byte_tokens = st.lists(
    st.one_of(st.integers(0, 257), st.sampled_from([*ids("ab \n\N{GRINNING FACE}é"), EOS])), max_size=40
)


@settings(deadline=None, max_examples=300)
@given(prompt=texts, tokens=byte_tokens, stop=stops)
@example(prompt="é", tokens=ids("aé\N{GRINNING FACE}")[:-1], stop=["\N{GRINNING FACE}"])
def test_over_bytes_the_pieces_are_the_whole_text_decoded_at_once_and_cut(
    prompt: str, tokens: list[int], stop: list[str]
) -> None:
    before = [BOS, *ids(prompt)]
    pieces = pieces_of(tokens, before, stop)
    expected = cut(decoded(BYTES, before, tokens), stop)
    assert "".join(pieces) == expected
    if HALF not in expected:
        assert not any(HALF in piece for piece in pieces)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), prompt=texts, stop=stops)
def test_with_byte_fallback_the_pieces_are_the_whole_text_decoded_at_once_and_cut(
    stories: Tokenizer, data: st.DataObject, prompt: str, stop: list[str]
) -> None:
    # Pieces, and bytes of whole characters; the last character may be half.
    characters = st.sampled_from("\n a é日\N{GRINNING FACE}").map(lambda c: [3 + byte for byte in c.encode()])
    parts = data.draw(st.lists(st.one_of(st.integers(259, 511).map(lambda t: [t]), characters), max_size=20))
    tokens = [token for part in parts for token in part]
    tokens = tokens[: len(tokens) - data.draw(st.integers(0, 3))]
    before = [1, *ids(prompt, stories)]
    expected = decoded(stories, before, tokens)
    whole = bytes(token - 3 for token in _bytes_at_the_end(tokens))
    if HALF in whole.decode(errors="replace"):  # the library gives up all bytes at the end; only the half is left out
        kept = whole.decode(errors="ignore").encode()
        expected = decoded(stories, before, tokens[: len(tokens) - len(whole) + len(kept)])
    assert "".join(pieces_of(tokens, before, stop, stories)) == cut(expected, stop)


def _bytes_at_the_end(tokens: Sequence[int]) -> list[int]:
    count = 0
    while count < len(tokens) and 3 <= tokens[-1 - count] <= 258:
        count += 1
    return list(tokens[len(tokens) - count :])


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of pieces and bytes, one token after another: bytes are a character as soon as they can be one."""
    text, waiting = "", b""
    for token in tokens:
        if 3 <= token <= 258:
            waiting += bytes([token - 3])
            whole = waiting.decode(errors="ignore") if HALF not in waiting.decode(errors="replace") else ""
            text, waiting = text + whole, b"" if whole else waiting
        elif 259 <= token <= 511:
            piece = str(tokenizer.id_to_token(token)).replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
            text, waiting = text + HALF * len(waiting) + piece, b""
    return text.rstrip(HALF)


@settings(deadline=None, max_examples=500)
@given(
    tokens=st.lists(st.one_of(st.integers(0, 520), st.integers(3, 258), st.sampled_from([10, 45, 198])), max_size=60)
)
@example(tokens=[3 + 0x20, 3 + 0xFF, 400])
@example(tokens=[*[3 + byte for byte in "日".encode()], *[3 + 0x20] * 50, 3 + 0xFF, 400])
@example(tokens=[410] * 50)
def test_with_byte_fallback_any_tokens_are_spelled_one_after_another(stories: Tokenizer, tokens: list[int]) -> None:
    assert "".join(pieces_of(tokens, [1, *ids("x", stories)], (), stories)) == spelled(stories, tokens)


@settings(deadline=None)
@given(
    prompt=st.lists(st.one_of(st.integers(0, 520), st.integers(3, 258)), max_size=60),
    tokens=st.lists(st.one_of(st.integers(0, 520), st.integers(3, 258)), max_size=200),
    stop=stops,
)
def test_no_tokens_whatever_raise_an_error(
    stories: Tokenizer, prompt: list[int], tokens: list[int], stop: list[str]
) -> None:
    text = "".join(pieces_of(tokens, prompt, stop, stories))
    assert not any(word in text for word in stop)


def test_a_stop_string_of_bytes_ends_the_answer_at_once(stories: Tokenizer) -> None:
    stream = TextStream(stories, [1], ["\n"])
    assert stream.push(3 + ord("\n")) == ""
    assert stream.stopped


def test_bytes_that_are_no_character_leave_those_that_were_sent(stories: Tokenizer) -> None:
    letter, bad, x = 3 + ord("B"), 3 + 0xFF, stories.encode("x", add_special_tokens=False).ids[-1]
    assert pieces_of([letter, bad, letter, x], [1, x], (), stories) == ["B", "", "", f"{HALF}{HALF}x", ""]


def test_a_model_that_says_half_a_character_forever_is_heard(stories: Tokenizer) -> None:
    for tokenizer, half in ((BYTES, ids("é")[0]), (stories, 3 + 0xC3)):
        pieces = pieces_of([half] * 300, [], (), tokenizer)
        assert len("".join(pieces)) >= 200
        assert max(map(len, pieces)) <= 64
        assert pieces_of([*[half] * 300, *ids("abc", tokenizer)], [], (), tokenizer)[-2].endswith("c")


def test_a_prompt_that_ends_in_half_a_character_is_not_told_again() -> None:
    first, *rest = ids("\N{GRINNING FACE}")
    assert pieces_of([*rest, *ids("!")], [*ids("the prompt "), first]) == ["", "", "\N{GRINNING FACE}", "!", ""]
    long = ids("x" * 1000)
    assert pieces_of([*rest[1:], *ids("!")], [*long, first, rest[0]]) == ["", "\N{GRINNING FACE}", "!", ""]


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 63, 64, 65, 300])
def test_the_end_of_a_long_prompt_is_enough(stories: Tokenizer, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ids("Once upon a time there was 日本語 and " * 30, stories)[:length]
    ends: tuple[list[int], ...] = ([], [2] * 40, ids("日", stories)[-3:-1], [3 + byte for byte in ("日" * 20).encode()])
    for prompt in ([1, *words, *end] for end in ends):
        for answer in (ids("there was", stories), ids("日本 x", stories), [3 + byte for byte in "日 x".encode()]):
            got = pieces_of(answer, prompt, (), stories)
            with monkeypatch.context() as patch:
                patch.setattr(token_text, "_PROMPT_TOKENS", len(prompt))
                assert got == pieces_of(answer, prompt, (), stories)


def test_whether_an_answer_begins_with_a_space_depends_on_what_stands_before_it(stories: Tokenizer) -> None:
    there = ids("there", stories)
    assert "".join(pieces_of(there, [1], (), stories)) == "there"
    assert "".join(pieces_of(there, [1, *ids("it", stories)], (), stories)) == " there"
    assert "".join(pieces_of(there, [1, *ids("it", stories), *[2] * 30], (), stories)) == " there"


def test_a_genuine_replacement_character_is_sent_once_more_follows() -> None:
    pieces = pieces_of(ids(f"a{HALF}b"))
    assert "".join(pieces) == f"a{HALF}b"


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    stop = StopStrings(["STOP", "TOO"])
    pieces = ("a", "S", "T", "x", "T", "O", "x", "ST", "O", "O")
    assert [stop.push(text) for text in pieces] == ["a", "", "", "STx", "", "", "TOx", "", "", "S"]
    assert stop.stopped
    assert stop.push("more") == ""
    assert stop.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    assert pieces_of(ids("abcEN"), stop=["END"]) == ["a", "b", "c", "", "", "EN"]
    assert pieces_of(ids("abcEND."), stop=["END"]) == ["a", "b", "c", "", "", "", "", ""]


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("aab", max_size=4), max_size=8),
    stop=st.lists(st.text("aab", min_size=1, max_size=5), max_size=4),
)
def test_a_text_is_cut_alike_in_whatever_pieces_it_comes(pieces: list[str], stop: list[str]) -> None:
    stream = StopStrings(stop)
    sent = ""
    for piece in pieces:
        sent += stream.push(piece)
        assert cut("".join(pieces), stop).startswith(sent)
    assert sent + stream.finish() == cut("".join(pieces), stop)
    assert stream.stopped == (cut("".join(pieces), stop) != "".join(pieces))


def test_half_a_character_at_the_end_is_left_out() -> None:
    for count in (1, 2, 3):
        assert pieces_of(ids("a\N{GRINNING FACE}")[: 1 + count]) == ["a", *[""] * count, ""]


@settings(deadline=None)
@given(prompt=texts, text=texts)
def test_the_pieces_of_a_sound_text_are_those_of_the_librarys_own_stream(
    stories: Tokenizer, prompt: str, text: str
) -> None:
    for tokenizer, first in ((BYTES, BOS), (stories, 1)):
        before = [first, *ids(prompt, tokenizer)]
        ours, theirs = TokenText(tokenizer, before), DecodeStream(before, skip_special_tokens=True)
        for token in ids(text, tokenizer):
            assert ours.push(token) == (theirs.step(tokenizer, token) or "")
