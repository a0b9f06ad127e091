"""Examples in windows: what is read and learned, where each example begins, and that nothing is lost or mixed."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import Chat, ChatMessage, Completion, Example, Labelled, MultipleChoice, TextRecord
from fedlora.errors import ConfigError, DataError, PackError
from fedlora_client.data.device_data import _cut
from fedlora_client.data.encoding import IGNORED, ExampleEncoder
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows, make_windows
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import BPE

from tests.tiny.tokenizer import BOS, EOS, byte_tokenizer

TEXTS = ["To be, or not to be", "é", "", "that is the question"]
CHATML = (
    "{% for message in messages %}{{ '<s>' + message.role + ':' + message.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TEMPLATE = ChatTemplate(CHATML, "chat_template.jinja", {})

Segment = tuple[list[int], list[int]]  # inputs and targets of one example in one window


def ids_of(text: str) -> list[int]:
    """Its tokens, by the slow way."""
    tokenizer = byte_tokenizer()
    symbols = sorted(tokenizer.get_vocab(with_added_tokens=False))
    return [symbols.index(symbol) for symbol in tokenizer.encode(text, add_special_tokens=False).tokens]


def learned_after(read: Sequence[int], learned: Sequence[int]) -> Segment:
    """The pairs of tokens of which those of `learned` are targets."""
    row = [*read, *learned]
    return row[:-1], ([IGNORED] * len(read) + list(learned))[1:]


def pairs_of(example: Example) -> Segment:
    """What is to be read and learned of an example, whatever its length."""
    match example:
        case str():
            return learned_after([], [BOS, *ids_of(example)])
        case TextRecord() | Labelled():
            return learned_after([], [BOS, *ids_of(example.text), EOS])
        case Completion():
            return learned_after([BOS, *ids_of(example.prompt)], [*ids_of(example.completion), EOS])
        case MultipleChoice():
            return learned_after([BOS, *ids_of(example.prompt)], [*ids_of(f" {example.choices[example.answer]}"), EOS])
        case Chat():
            inputs: list[int] = []
            targets: list[int] = []
            for message in example.messages:
                begin = [BOS, *ids_of(f"{message.role}:")]
                said = [*ids_of(message.text), EOS]
                inputs += begin + said
                assistant = message.role == "assistant"
                targets += [IGNORED] * len(begin) + (said if assistant else [IGNORED] * len(said))
            end = max(place for place, target in enumerate(targets) if target != IGNORED)
            return inputs[:end], targets[1 : end + 1]


def cut(segment: Segment, length: int) -> Segment:
    """The beginning of a segment, up to the last target in it."""
    inputs, targets = segment[0][:length], segment[1][:length]
    end = 1 + max((place for place, target in enumerate(targets) if target != IGNORED), default=-1)
    return inputs[:end], targets[:end]


def segments_of(windows: Windows) -> list[list[Segment]]:
    """The segments of each window, which lie side by side from its beginning; after them there is only padding."""
    result = []
    for inputs, targets, starts in zip(
        *(t.tolist() for t in (windows.inputs, windows.targets, windows.starts)), strict=True
    ):
        found: list[Segment] = []
        for begin in sorted(set(starts)):
            places = [place for place, start in enumerate(starts) if start == begin]
            assert places == list(range(begin, begin + len(places))), (
                "a segment is in one piece, and begins at its start"
            )
            segment = [inputs[place] for place in places], [targets[place] for place in places]
            if set(segment[1]) == {IGNORED}:
                assert len(places) == 1, "padding attends to itself alone"
                assert all(target == IGNORED for target in targets[begin:]), "padding is at the end"
                break
            found.append(segment)
        result.append(found)
    return result


def row_of(examples: Sequence[Example]) -> list[Segment]:
    return [pairs for pairs in map(pairs_of, examples) if pairs[0]]


def assert_row(windows: Sequence[Sequence[Segment]], examples: Sequence[Example], length: int) -> None:
    """The windows are those of the examples in a row, by cutting it token by token."""
    expected: list[list[Segment]] = []
    size = 0
    for inputs, targets in row_of(examples):
        fresh = True
        for token, target in zip(inputs, targets, strict=True):
            if size % length == 0:
                expected.append([])
                fresh = True
            if fresh:
                expected[-1].append(([], []))
                fresh = False
            expected[-1][-1][0].append(token)
            expected[-1][-1][1].append(target)
            size += 1
    assert list(windows) == expected


@pytest.mark.parametrize("length", [1, 2, 7, 41, 64])
def test_texts_lie_in_a_row_that_is_cut_into_windows(base: BasePack, length: int) -> None:
    windows = make_windows(TEXTS, byte_tokenizer(), base.shape, length, "here")
    assert_row(segments_of(windows), TEXTS, length)
    learned = windows.targets[windows.targets != IGNORED].tolist()
    assert learned == [token for text in TEXTS for token in ids_of(text)]
    assert windows.inputs.shape == windows.targets.shape == windows.starts.shape == (-(-len(learned) // length), length)
    assert {part.dtype for part in (windows.inputs, windows.targets, windows.starts)} == {torch.int64}
    assert len(windows) == windows.inputs.shape[0]
    assert (windows.learned_tokens, windows.examples) == (len(learned), 3)
    # Padding has tokens that exist.
    assert set(windows.inputs.flatten().tolist()) <= set(range(base.shape.vocab_size))


def test_a_text_that_runs_over_begins_anew_in_the_next_window(base: BasePack) -> None:
    windows = make_windows(["abc", "defgh"], byte_tokenizer(), base.shape, 5, "here")
    a, b, c, d, e, f, g, h = ids_of("abcdefgh")
    assert windows.inputs.tolist() == [[BOS, a, b, BOS, d], [e, f, g, 0, 0]]
    assert windows.targets.tolist() == [[a, b, c, d, e], [f, g, h, IGNORED, IGNORED]]
    assert windows.starts.tolist() == [[0, 0, 0, 3, 3], [0, 0, 0, 3, 4]]


def test_a_document_ends_and_a_text_does_not(base: BasePack) -> None:
    windows = make_windows(["ab", TextRecord("c")], byte_tokenizer(), base.shape, 8, "here")
    a, b, c = ids_of("abc")
    assert segments_of(windows) == [[([BOS, a], [a, b]), ([BOS, c], [c, EOS])]]


def test_a_completion_is_learned_after_its_prompt_and_with_its_end(base: BasePack) -> None:
    windows = make_windows([Completion("ab", "cd")], byte_tokenizer(), base.shape, 8, "here")
    a, b, c, d = ids_of("abcd")
    assert windows.inputs.tolist() == [[BOS, a, b, c, d, 0, 0, 0]]
    assert windows.targets.tolist() == [[IGNORED, IGNORED, c, d, EOS, IGNORED, IGNORED, IGNORED]]
    assert windows.starts.tolist() == [[0, 0, 0, 0, 0, 5, 6, 7]]


def test_no_token_holds_a_bit_of_the_prompt_and_of_the_completion(base: BasePack) -> None:
    tokenizer = Tokenizer(BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    windows = make_windows([Completion("a", "b")], tokenizer, base.shape, 3, "here")
    assert windows.inputs.tolist() == [[BOS, 0, 1]]
    assert windows.targets.tolist() == [[IGNORED, 1, EOS]]
    assert make_windows(["ab"], tokenizer, base.shape, 3, "here").targets[0, 0] == 2


def test_a_chat_is_learned_where_the_assistant_speaks_and_read_up_to_there(base: BasePack) -> None:
    said = (("user", "a"), ("assistant", "é"), ("user", "b"), ("assistant", "c"), ("user", "never answered"))
    chat = Chat(tuple(ChatMessage(role, content) for role, content in said))
    windows = make_windows([chat], byte_tokenizer(), base.shape, 64, "here", chat_template=TEMPLATE)
    assert segments_of(windows) == [[pairs_of(chat)]]
    assert [token for token in windows.targets[0].tolist() if token != IGNORED] == [
        *ids_of("é"),
        EOS,
        *ids_of("c"),
        EOS,
    ]
    assert windows.truncated == 0


def test_the_first_token_of_an_answer_is_learned_even_where_it_has_no_characters(base: BasePack) -> None:
    """As Llama 2's tokenizer has it: a mark of the word's beginning that is not in the text."""
    vocabulary = {"▁": 0, "a": 1, "b": 2, ":": 3}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    template = ChatTemplate("{% for m in messages %}{{ m.content }}<s>{% endfor %}", "t", {})
    chat = Chat((ChatMessage("user", "a"), ChatMessage("assistant", "b")))
    pairs = ExampleEncoder(tokenizer=tokenizer, shape=base.shape, chat_template=template).pairs(chat, "here")
    assert pairs.inputs.tolist() == [0, 1, 4, 0, 2]
    assert pairs.targets.tolist() == [IGNORED, IGNORED, 0, 2, 4]


def test_a_base_without_bos_or_eos_gets_none(base: BasePack) -> None:
    shape = dataclasses.replace(base.shape, tokens_before_text=(), tokens_after_text=(), eos_token_ids=())
    examples: list[Example] = ["ab", "c", TextRecord("de"), Completion("f", "gh"), Completion("", "ij")]
    windows = make_windows(examples, byte_tokenizer(), shape, 3, "here")
    a, b, d, e, f, g, h, i, j = ids_of("abdefghij")
    # Of "c" there is nothing to learn: no token comes before it.
    assert segments_of(windows) == [
        [([a], [b]), ([d], [e])],
        [([f, g], [g, h]), ([i], [j])],
    ]


def test_the_first_of_several_ends_is_the_one_that_is_learned(base: BasePack) -> None:
    shape = dataclasses.replace(base.shape, eos_token_ids=(7, EOS), tokens_after_text=())
    windows = make_windows([Completion("a", "b")], byte_tokenizer(), shape, 3, "here")
    assert windows.targets[0, -1] == 7


def test_records_too_long_for_a_window_are_cut_or_left_out_and_counted(base: BasePack) -> None:
    examples = [
        Completion("ab", "cdef"),  # 7 pairs
        Completion("ab", "cde"),  # 6 pairs
        Completion("abcdef", "g"),  # its first target would be the 7th
        Completion("ab", "c"),
        Completion("abcdefghijkl", "g"),
    ]
    windows = make_windows(examples, byte_tokenizer(), base.shape, 6, "here")
    assert (windows.examples, windows.truncated, windows.skipped) == (3, 1, 2)
    kept = [segment for window in segments_of(windows) for segment in window]
    assert sorted(kept) == sorted(cut(pairs_of(example), 6) for example in (examples[0], examples[1], examples[3]))


def test_records_whose_prompts_fill_every_window_are_refused_with_what_to_do(base: BasePack) -> None:
    examples = [Completion("a long prompt", "b"), Completion("another long prompt", "b")]
    message = (
        r"^device kitchen: none of the 2 examples has anything to learn in its first 8 tokens; raise "
        r"train\.sequence_length \(this base: at most 64\), or shorten the prompts$"
    )
    with pytest.raises(DataError, match=message):
        make_windows(examples, byte_tokenizer(), base.shape, 8, "device kitchen")
    assert make_windows(["text", *examples], byte_tokenizer(), base.shape, 8, "device kitchen").skipped == 2


def test_a_chat_without_a_template_is_refused_by_its_number(base: BasePack) -> None:
    chat = Chat((ChatMessage("user", "a"), ChatMessage("assistant", "b")))
    message = (
        r"^device kitchen: example 2: it has messages, and the base has no chat template; give prompt and completion"
    )
    with pytest.raises(DataError, match=message):
        make_windows(["text", chat], byte_tokenizer(), base.shape, 8, "device kitchen")


CHARACTERS = st.characters(codec="utf-8", exclude_characters="<")  # with it a text may spell a special token
WORDS = st.text(CHARACTERS, max_size=12)
SOME = st.text(CHARACTERS, min_size=1, max_size=12)
CHATS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), SOME), max_size=3).map(
    lambda said: Chat(tuple(ChatMessage(*one) for one in [*said, ("user", "so?"), ("assistant", "yes")]))
)
EXAMPLES: st.SearchStrategy[Example] = (
    WORDS | SOME.map(TextRecord) | st.tuples(WORDS, SOME).map(lambda pair: Completion(*pair)) | CHATS
)


@settings(deadline=None, max_examples=150)
@given(examples=st.lists(EXAMPLES, min_size=1, max_size=8), length=st.integers(1, 64))
def test_any_examples_are_read_and_learned_once_in_order_and_apart(
    base: BasePack, examples: list[Example], length: int
) -> None:
    texts = [example for example in examples if isinstance(example, str | TextRecord)]
    whole = [pairs_of(example) for example in examples if not isinstance(example, str | TextRecord)]
    fitting = [segment for segment in (cut(pairs, length) for pairs in whole) if segment[0]]
    if not row_of(texts) and not fitting:
        with pytest.raises(DataError, match="here: no"):
            make_windows(examples, byte_tokenizer(), base.shape, length, "here", chat_template=TEMPLATE)
        return
    windows = make_windows(examples, byte_tokenizer(), base.shape, length, "here", chat_template=TEMPLATE)
    segments = segments_of(windows)
    count = -(-sum(len(inputs) for inputs, _ in row_of(texts)) // length)
    assert_row(segments[:count], texts, length)
    assert sorted(segment for window in segments[count:] for segment in window) == sorted(fitting)
    assert windows.examples == len(row_of(texts)) + len(fitting)
    assert windows.skipped == len(whole) - len(fitting)
    assert windows.truncated == sum(cut(pairs, length) not in (pairs, ([], [])) for pairs in whole)
    # A window is not left half empty beside another that would have fitted into it.
    filled = sorted(sum(len(inputs) for inputs, _ in window) for window in segments[count:])
    assert all(first + second > length for first, second in pairwise(filled))
    again = make_windows(examples, byte_tokenizer(), base.shape, length, "here", chat_template=TEMPLATE)
    assert torch.equal(
        torch.stack([windows.inputs, windows.targets, windows.starts]),
        torch.stack([again.inputs, again.targets, again.starts]),
    )


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
        open_tokenizer(tmp_path)


def test_the_tokenizer_of_a_pack_is_the_one_that_was_packed(base: BasePack) -> None:
    text = "a é \N{GRINNING FACE}\n"
    expected = byte_tokenizer().encode(text, add_special_tokens=False).ids
    assert open_tokenizer(base.directory).encode(text, add_special_tokens=False).ids == expected


def test_a_tokenizer_that_would_cut_or_fill_texts_does_neither(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16, pad_token="<s>", pad_id=BOS)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).encode("six by", add_special_tokens=False).ids == ids_of("six by")


def test_another_models_tokenizer_is_refused_by_the_token(base: BasePack) -> None:
    shape = dataclasses.replace(base.shape, vocab_size=60)
    with pytest.raises(
        PackError, match=r"^here: example 1: the tokenizer gave id \d+, the base's vocabulary has 60: they do"
    ):
        make_windows(["zz"], byte_tokenizer(), shape, 8, "here")


@pytest.mark.parametrize(
    ("examples", "limit_bytes", "kept"),
    [
        (("éé", "ab"), 3, ("é",)),
        (("éé", "ab"), 5, ("éé", "a")),
        ((TextRecord("abc"), TextRecord("de"), TextRecord("f")), 5, (TextRecord("abc"), TextRecord("de"))),
        ((TextRecord("abc"), TextRecord("de"), TextRecord("f")), 4, (TextRecord("abc"),)),
        ((Completion("ab", "c"), TextRecord("de")), 1, (Completion("ab", "c"),)),
        (("ab", TextRecord("cde")), 4, ("ab",)),
        ((TextRecord("é"), "abc"), 4, (TextRecord("é"), "ab")),
    ],
)
def test_a_limit_in_bytes_cuts_texts_and_leaves_records_whole(
    examples: tuple[Example, ...], limit_bytes: int, kept: tuple[Example, ...]
) -> None:
    assert _cut(examples, limit_bytes) == kept


def test_real_questions_and_answers_fill_their_windows(shared: Path) -> None:
    base = open_pack("nano")
    tokenizer = open_tokenizer(base.directory)
    examples: list[Example] = []
    with gzip.open(shared / "data" / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            examples.append(Completion(record["question"] + "\n", record["answer"]))
    windows = make_windows(examples, tokenizer, base.shape, 256, "gsm8k")
    assert windows.examples + windows.skipped == len(examples) == 1319
    positions = torch.arange(256).expand_as(windows.starts)
    padding = (windows.starts == positions) & (windows.targets == IGNORED) & (windows.inputs == 0)
    assert padding.float().mean() < 0.2
    # Of a window's first example, what is learned is its answer.
    first = int((windows.targets[0] != IGNORED).nonzero()[0, 0])
    learned = [token for token in windows.targets[0].tolist() if token != IGNORED]
    question = tokenizer.decode(windows.inputs[0, : first + 1].tolist())
    matching = [one for one in examples if isinstance(one, Completion) and one.prompt == question]
    assert len(matching) == 1
    assert matching[0].completion.startswith(tokenizer.decode(learned[:20]))


def test_real_instructions_keep_context_and_response_apart(shared: Path) -> None:
    base = open_pack("nano")
    tokenizer = open_tokenizer(base.directory)
    template = ChatTemplate(CHATML, "chat_template.jinja", {})
    with gzip.open(shared / "data" / "dolly-clients" / "global_test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    chats = [
        Chat((ChatMessage("user", one["instruction"] + one["context"]), ChatMessage("assistant", one["response"])))
        for one in records
    ]
    windows = make_windows(chats, tokenizer, base.shape, 256, "dolly", chat_template=template)
    assert windows.examples + windows.skipped == len(chats) == 80
    whole = [
        segment
        for window in segments_of(windows)
        for segment in window
        if segment[1][-1] == base.shape.eos_token_ids[0]
    ]
    said = {tokenizer.decode([token for token in targets if token != IGNORED]) for _, targets in whole}
    assert len(whole) == windows.examples - windows.truncated
    assert said <= {one["response"] for one in records}
