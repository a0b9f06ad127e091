"""What a tokenizer's files say of the beginning and the end of a text, beside what transformers makes of them."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import open_pack
from fedlora.base.packing import make_pack
from fedlora.base.special_tokens import SpecialTokens, read_special_tokens
from fedlora.base.tokenizer import begun, ended
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.tiny.checkpoints import llama_config, llama_shape, random_weights, tiny_quantization, write_checkpoint
from tests.tiny.tokenizer_kinds import KINDS, TEXT, write_tokenizer

PIECES = st.sampled_from([*"aehlmt A\n.:é東", "  ", "cat", " the", "Lily said", "<unk>", "<|im_end|>", "▁", "👍🏽"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Tokenizer, SpecialTokens, Any]]:
    """(the tokenizer of a kind, what its files say, transformers' own)"""

    @cache
    def one(kind: str) -> tuple[Tokenizer, SpecialTokens, Any]:
        directory = tmp_path_factory.mktemp("tokenizer")
        tokenizer = write_tokenizer(kind, directory)
        tokens = read_special_tokens(directory, {"tokenizer.json", "tokenizer_config.json"})
        assert tokens
        return tokenizer, tokens, AutoTokenizer.from_pretrained(str(directory))

    return one


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(text=TEXTS | st.sampled_from(TEXT))
def test_a_text_has_the_tokens_that_transformers_gives_it(
    opened: Callable[[str], tuple[Tokenizer, SpecialTokens, Any]], kind: str, text: str
) -> None:
    tokenizer, tokens, oracle = opened(kind)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert [*tokens.before, *ids, *tokens.after] == oracle(text).input_ids
    assert tokens.end == oracle.eos_token_id
    # A prompt goes on: it has no end. Nothing is said twice.
    shape = dataclasses.replace(llama_shape(), tokens_before_text=tokens.before, tokens_after_text=tokens.after)
    assert [*begun(shape, ids), *tokens.after] == oracle(text).input_ids
    assert begun(shape, begun(shape, ids)) == begun(shape, ids)
    assert ended(shape, ended(shape, ids)) == ended(shape, ids)


def test_the_kinds_differ_in_what_they_add(
    opened: Callable[[str], tuple[Tokenizer, SpecialTokens, Any]],
) -> None:
    """So that the comparison above compares something."""
    found = {(tokens.before, tokens.after) for _, tokens, _ in map(opened, KINDS)}
    assert found >= {((), ()), ((1,), ()), ((), (2,)), ((1,), (2,)), ((1, 3), ())}


def packed(directory: Path, kind: str, **config: Any) -> Path:
    """The pack of a tiny Llama with a tokenizer of this kind."""
    described = llama_config(vocab_size=512, **config)
    source = write_checkpoint(directory / "source", config=described, weights=random_weights(described))
    write_tokenizer(kind, source)
    make_pack(str(source), directory / "pack", tiny_quantization())
    return directory / "pack"


def test_config_json_alone_puts_no_token_before_a_text(tmp_path: Path) -> None:
    shape = open_pack(packed(tmp_path, "bytes, byte-level processor (Qwen)", bos_token_id=0, eos_token_id=3)).shape
    assert (shape.tokens_before_text, shape.tokens_after_text, shape.bos_token_id) == ((), (), None)
    assert shape.eos_token_ids == (4, 3), "the tokenizer's own end is the one that is learned"
    assert shape.stop_token_ids == (4, 3)


def test_a_text_begins_as_the_tokenizer_has_it_where_config_json_names_no_token(tmp_path: Path) -> None:
    shape = open_pack(packed(tmp_path, "SentencePiece, legacy", bos_token_id=None, eos_token_id=None)).shape
    assert (shape.tokens_before_text, shape.bos_token_id, shape.eos_token_ids) == ((1,), 1, (2,))
    assert shape.stop_token_ids == (2, 1)


def test_the_embedded_base_begins_its_texts_as_it_learned_them() -> None:
    shape = open_pack("nano").shape
    assert (shape.tokens_before_text, shape.tokens_after_text, shape.eos_token_ids) == ((0,), (), (1,))


def test_a_document_has_one_end() -> None:
    shape = llama_shape(eos_token_id=[2, 7])
    assert ended(shape, [5]) == [5, 2]
    assert ended(shape, [5, 7]) == [5, 7]
    assert ended(shape, []) == [2]
    adds = dataclasses.replace(shape, tokens_after_text=(2,))
    assert ended(adds, [5]) == [5, 2]
    separates = dataclasses.replace(shape, tokens_after_text=(9,))
    assert ended(separates, [5]) == [5, 9, 2]
    endless = dataclasses.replace(shape, eos_token_ids=(), tokens_after_text=(9,))
    assert (ended(endless, [5]), ended(endless, [5, 9])) == ([5, 9], [5, 9])


def names_in(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def test_the_order_of_a_tokenizers_file_does_not_matter(tmp_path: Path) -> None:
    write_tokenizer("SentencePiece, legacy, eos", tmp_path)
    path = tmp_path / "tokenizer.json"
    expected = read_special_tokens(tmp_path, names_in(tmp_path))
    content = json.loads(path.read_text())
    for keys in (sorted(content), sorted(content, reverse=True), ["model", *sorted(content.keys() - {"model"})]):
        for indent in (None, 1):
            path.write_text(json.dumps({key: content[key] for key in keys}, indent=indent))
            assert read_special_tokens(tmp_path, names_in(tmp_path)) == expected


@pytest.mark.parametrize("kind", ["bytes, bos", "Unigram, eos (T5)", "WordPiece, template"])
def test_an_end_that_only_the_vocabulary_knows_is_found_there(tmp_path: Path, kind: str) -> None:
    write_tokenizer(kind, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    found = read_special_tokens(tmp_path, names_in(tmp_path))
    assert found
    assert found.end == 2


def test_the_older_file_of_special_tokens_counts_where_the_settings_describe_none(tmp_path: Path) -> None:
    write_tokenizer("bytes, bos", tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    cases: list[tuple[dict[str, object], int]] = [({}, 4), ({"added_tokens_decoder": {}}, 2)]
    for described, expected in cases:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | described))
        found = read_special_tokens(tmp_path, names_in(tmp_path))
        assert found
        assert found.end == AutoTokenizer.from_pretrained(str(tmp_path)).eos_token_id == expected
    assert read_special_tokens(tmp_path, {"tokenizer.json"}) == SpecialTokens(before=(1,))


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", '{"post_processor": {"type": "TemplateProcessing", "single": [], "special_tokens": {}}}',
        '{"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}, "model": 1',
        '{"added_tokens": [1]}', "\ud800",
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert read_special_tokens(tmp_path, names_in(tmp_path)) is None
    (tmp_path / "tokenizer.json").unlink()
    assert read_special_tokens(tmp_path, set()) is None


@pytest.mark.parametrize(("times", "tokens"), [(20_000, 20_000), (1, 1025), (1025, 1)])
def test_a_template_that_names_its_tokens_many_times_says_nothing(tmp_path: Path, times: int, tokens: int) -> None:
    special = {"X": {"id": "X", "ids": [1] * tokens, "tokens": ["x"] * tokens}}
    single = [{"SpecialToken": {"id": "X", "type_id": 0}}] * times + [{"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "post_processor": template, "model": {}}))
    tracemalloc.start()
    try:
        assert read_special_tokens(tmp_path, {"tokenizer.json"}) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000_000  # a read makes room for 64 MiB
    finally:
        tracemalloc.stop()


def test_a_tokenizer_of_brackets_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"added_tokens":[' + b"[]," * 3_000_000 + b"[]]}")
    tracemalloc.start()
    try:
        assert read_special_tokens(tmp_path, {"tokenizer.json"}) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000_000  # a read makes room for 64 MiB
    finally:
        tracemalloc.stop()
