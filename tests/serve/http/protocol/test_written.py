"""What is written piece by piece is what would be written at once."""

from __future__ import annotations

import json

import pytest
from fedlora_serve.http.protocol.chat import ChatLogprobs, ChosenLogprob, TokenLogprob
from fedlora_serve.http.protocol.completions import CompletionLogprobs
from fedlora_serve.http.protocol.embeddings import Embedding, Embeddings
from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.written import written


def vectors(count: int, size: int) -> Embeddings:
    data = [
        Embedding(object="embedding", index=index, embedding=[index + number / 7 for number in range(size)])
        for index in range(count)
    ]
    return Embeddings(
        object="list", data=data, model='a "name" é', usage=EmbeddingUsage(prompt_tokens=1, total_tokens=1)
    )


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 3), (3, 1024), (2, 1025), (2, 5000)])
def test_an_answer_in_pieces_is_the_answer(count: int, size: int) -> None:
    answer = vectors(count, size)
    assert written(answer).decode() == answer.model_dump_json()


def token(number: int) -> ChosenLogprob:
    top = [TokenLogprob(token=f"é{n}", logprob=-n / 3, bytes=[n] * n) for n in range(number % 4)]
    return ChosenLogprob(token='"', logprob=-9999.0, bytes=None, top_logprobs=top)


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_a_list_may_be_made_while_it_is_written(count: int) -> None:
    whole = ChatLogprobs(content=[token(number) for number in range(count)], refusal=None)
    made = ChatLogprobs.model_construct(content=(token(number) for number in range(count)), refusal=None)
    assert json.loads(written(made)) == json.loads(written(whole)) == json.loads(whole.model_dump_json())


@pytest.mark.parametrize("tokens", [0, 1, 48, 49, 400])
@pytest.mark.parametrize("likeliest", [0, 1, 21, 2000])
def test_the_likeliest_tokens_of_each_place_are_written_some_places_at_a_time(tokens: int, likeliest: int) -> None:
    top = [{f"é{number}": -number / 7 for number in range(likeliest if place % 5 else 0)} for place in range(tokens)]
    answer = CompletionLogprobs(
        tokens=["a"] * tokens, token_logprobs=[-0.5] * tokens, top_logprobs=top, text_offset=list(range(tokens))
    )
    assert written(answer).decode() == answer.model_dump_json()
