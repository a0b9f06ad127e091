"""The tokens of a prompt, beside transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora_serve.text.tokenizer import enough_of, open_tokenizer, prompt_tokens, tokens_of
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.serve.http.fake_engine import FakeEngine, words
from tests.serve.http.services import BASE, Client, service
from tests.tiny.checkpoints import llama_config, random_weights, tiny_quantization, write_checkpoint
from tests.tiny.tokenizer_kinds import KINDS, write_tokenizer

PROMPTS = ("Lily said", " two  blanks ", "é\n", "<|im_end|> the cat")


def packed(directory: Path, kind: str) -> tuple[BasePack, Any]:
    """(the pack of a tiny Llama with a tokenizer of this kind, transformers' own)"""
    config = llama_config(vocab_size=512, bos_token_id=3, eos_token_id=3)  # which is not what the tokenizer adds
    source = write_checkpoint(directory / "source", config=config, weights=random_weights(config))
    write_tokenizer(kind, source)
    make_pack(str(source), directory / "pack", tiny_quantization())
    return open_pack(directory / "pack"), AutoTokenizer.from_pretrained(str(source))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_begins_as_transformers_begins_it_and_goes_on(tmp_path: Path, kind: str) -> None:
    base, oracle = packed(tmp_path, kind)
    tokenizer = open_tokenizer(base.directory)
    for prompt in PROMPTS:
        tokens = prompt_tokens(tokenizer, base.shape, prompt)
        assert [*tokens, *base.shape.tokens_after_text] == oracle(prompt).input_ids
        plain = prompt_tokens(tokenizer, base.shape, prompt, add_special_tokens=False)
        assert plain == oracle(prompt, add_special_tokens=False).input_ids
    spelled = "".join(str(tokenizer.id_to_token(token)) for token in base.shape.tokens_before_text) + "hi"
    assert prompt_tokens(tokenizer, base.shape, spelled) == tokenizer.encode(spelled, add_special_tokens=False).ids


def test_a_request_is_heard_that_asks_for_special_tokens_or_for_none(tmp_path: Path) -> None:
    base, _ = packed(tmp_path, "bytes, bos")
    engine = FakeEngine(words("one"))
    state = service(base, engine)
    client, hello = Client(state), [{"role": "user", "content": "Hi"}]
    cat, said = (
        tuple(state.tokenizer.encode(text, add_special_tokens=False).ids) for text in ("cat", "[user]Hi[assistant]")
    )

    def asked(path: str, **body: object) -> list[tuple[int, ...]]:
        engine.requests.clear()
        assert client.post(path, {"model": BASE, **body}).status_code == 200
        return [tuple(request.prompt) for request in engine.requests]

    for added, completion, chat in (
        ({}, (1, *cat), said), ({"add_special_tokens": None}, (1, *cat), said),
        ({"add_special_tokens": True}, (1, *cat), (1, *said)), ({"add_special_tokens": False}, cat, said),
    ):  # fmt: skip
        assert asked("/v1/completions", prompt="cat", **added) == [completion]
        assert asked("/v1/completions", prompt=[3, 5], **added) == [(3, 5)]
        assert asked("/v1/chat/completions", messages=hello, **added) == [chat]


class Counting:
    """A tokenizer that counts the characters that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def encode_batch_fast(self, texts: list[str], **options: bool) -> Any:
        self.characters += sum(map(len, texts))
        return self.tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_text_that_is_far_too_long_a_part_is_read(tmp_path: Path, kind: str) -> None:
    write_tokenizer(kind, tmp_path)
    counting: Any = Counting(open_tokenizer(tmp_path))
    text = "The cat ran home, and Tom said: yes.\n" * 20_000
    for from_end in (False, True):
        part = enough_of(counting, text, 50, from_end=from_end)
        assert part == (text[-len(part) :] if from_end else text[: len(part)])
    tokens = tokens_of(counting, text, add_special_tokens=False, at_most=50)
    assert len(tokens) > 100
    assert counting.characters < len(text) / 10
    short = text[:300]
    whole = tokens_of(counting, short, add_special_tokens=False)
    for at_most in (1, 20, len(whole), 5000):
        read = tokens_of(counting, short, add_special_tokens=False, at_most=at_most)
        assert read == whole or len(read) > 2 * at_most


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_prompt_that_is_far_too_long_is_refused_from_its_beginning(tmp_path: Path, route: str) -> None:
    base, _ = packed(tmp_path, "bytes, bos")
    state = service(base, FakeEngine(max_tokens=64))
    state.tokenizer = counting = cast(Any, Counting(state.tokenizer))
    text = "The cat ran home. " * 50_000
    asked = {"prompt": text} if route == "completions" else {"messages": [{"role": "user", "content": text}]}
    response = Client(state).post(f"/v1/{route}", {"model": BASE, **asked})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "more than 128 tokens, more than the context of 64 tokens; shorten the prompt" in error["message"]
    assert counting.characters < 20_000
