"""A completion goes on from its prompt: what is read and learned decodes to both, joined, with every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from fedlora.base.special_tokens import read_special_tokens, with_special_tokens
from fedlora.base.tokenizer import begun
from fedlora.data.examples import Completion
from fedlora.family import DecoderShape
from fedlora_client.data.continuation import split_tokens
from fedlora_client.data.encoding import IGNORED, ExampleEncoder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.tiny.checkpoints import llama_shape
from tests.tiny.tokenizer_kinds import KINDS, TEXT, write_tokenizer

ENDS = [*"aehlmt A\n.:é東", "  ", "cat", " the", "Lily said", "</s>", "\n\n", "👍🏽", "1", " "]
PARTS = st.lists(st.sampled_from(ENDS), max_size=6).map("".join)

Opened = Callable[[str], tuple[Tokenizer, DecoderShape]]


def split(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    read, learned = split_tokens(tokenizer, prompt, completion)
    return read.tolist(), learned.tolist()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    @cache
    def one(kind: str) -> tuple[Tokenizer, DecoderShape]:
        directory = tmp_path_factory.mktemp("tokenizer")
        tokenizer = write_tokenizer(kind, directory)
        tokens = read_special_tokens(directory, {"tokenizer.json", "tokenizer_config.json"})
        return tokenizer, with_special_tokens(llama_shape(vocab_size=512), tokens)

    return one


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(prompt=PARTS, completion=PARTS.filter(bool))
@example(prompt="Lily said", completion="\nHello")
@example(prompt="A:", completion=" At home")
@example(prompt="A: ", completion="At home")
@example(prompt="", completion=" x")
@example(prompt="Lily sa", completion="id hello")
@example(prompt="cat</s>", completion=" the")
def test_what_is_read_and_learned_is_the_joined_text(opened: Opened, kind: str, prompt: str, completion: str) -> None:
    tokenizer, _ = opened(kind)
    read, learned = split(tokenizer, prompt, completion)
    joined = tokenizer.encode(prompt + completion, add_special_tokens=False).ids
    assert read == tokenizer.encode(prompt, add_special_tokens=False).ids, "as generate reads the prompt"

    def text(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False))

    if text(joined) == prompt + completion:  # elsewhere the tokenizer itself loses something
        assert text([*read, *learned]) == prompt + completion
    if joined[: len(read)] == read and len(joined) > len(read):
        assert learned == joined[len(read) :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_may_be_cut_anywhere(opened: Opened, kind: str) -> None:
    tokenizer, _ = opened(kind)
    for text in TEXT:
        joined = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        for place in range(len(text)):
            read, learned = split(tokenizer, text[:place], text[place:])
            assert learned or not text[place:].strip()
            if joined == text:
                assert tokenizer.decode([*read, *learned], skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_added_between_prompt_and_completion_and_no_end_is_doubled(opened: Opened, kind: str) -> None:
    tokenizer, shape = opened(kind)
    encoder = ExampleEncoder(tokenizer=tokenizer, shape=shape)

    def rows(prompt: str, completion: str) -> tuple[list[int], list[int]]:
        pairs = encoder.pairs(Completion(prompt, completion), "here")
        learned = [token for token in pairs.targets.tolist() if token != IGNORED]
        return [*pairs.inputs.tolist(), pairs.targets.tolist()[-1]], learned

    row, learned = rows("Lily said", "\nhello")
    read, said = split(tokenizer, "Lily said", "\nhello")
    assert row == [*begun(shape, read), *learned]
    assert learned[: len(said)] == said
    assert learned[len(said) :] == list(shape.tokens_after_text or shape.eos_token_ids[:1])
    end = str(tokenizer.id_to_token(shape.eos_token_ids[0]))
    assert rows("Lily said", f"\nhello{end}")[0].count(shape.eos_token_ids[0]) == 1
    if shape.tokens_before_text == (1,):
        assert rows("<s>Lily", " said")[0].count(1) == rows("", "<s>Lily")[0].count(1) == 1


def test_a_prompt_that_is_empty_leaves_the_completion_a_text_of_its_own(opened: Opened) -> None:
    tokenizer, shape = opened("SentencePiece, legacy")
    pairs = ExampleEncoder(tokenizer=tokenizer, shape=shape).pairs(Completion("", "the cat"), "here")
    own = tokenizer.encode("the cat", add_special_tokens=False).ids
    assert pairs.inputs.tolist() == [1, *own]
    assert pairs.targets.tolist() == [*own, 2]
