"""POST /v1/chat/completions, whole answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.text.model_defaults import ModelDefaults

from tests.serve.http.fake_engine import FakeEngine, token_of, words
from tests.serve.http.services import BASE, Client, refusal, service, tokens
from tests.tiny.tokenizer import BOS

Post = Callable[..., Any]
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(words("one two three", cached=5))


@pytest.fixture
def post(base: BasePack, engine: FakeEngine) -> Post:
    """Ask for a chat's answer; its JSON where it is a success, else the response."""
    client = Client(service(base, engine, adapters=["poet"]))

    def ask(**fields: Any) -> Any:
        response = client.post("/v1/chat/completions", {"model": BASE, "messages": HELLO, **fields})
        return response.json() if response.status_code == 200 else response

    return ask


def test_what_a_request_leaves_out_is_as_the_models_own_file_says(base: BasePack, engine: FakeEngine) -> None:
    state = service(base, engine)
    state.model_defaults = ModelDefaults({"temperature": 0.5, "top_k": 7, "max_tokens": 6})
    for fields in ({}, {"temperature": 0, "max_tokens": 3}):
        Client(state).post("/v1/chat/completions", {"model": BASE, "messages": HELLO, **fields})
    chosen = [
        (asked.sampling.temperature, asked.sampling.top_k, asked.sampling.max_tokens) for asked in engine.requests
    ]
    assert chosen == [(0.5, 7, 6), (0, 7, 3)]


def test_the_assistant_answers_what_the_template_writes(post: Post, engine: FakeEngine) -> None:
    answer = post(messages=[{"role": "system", "content": "Be brief."}, *HELLO])
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two three", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
    [request] = engine.requests
    assert request.prompt == tuple(tokens("[system]Be brief.[user]Hi[assistant]"))


def test_a_chat_begins_as_a_text_where_special_tokens_are_to_be_added(post: Post, engine: FakeEngine) -> None:
    post(add_special_tokens=True)
    post(add_special_tokens=False)
    prompt = tuple(tokens("[user]Hi[assistant]"))
    assert [request.prompt for request in engine.requests] == [(BOS, *prompt), prompt]


def test_an_answer_takes_what_the_context_leaves_unless_it_is_told(post: Post, engine: FakeEngine) -> None:
    prompt = len(tokens("[user]Hi[assistant]"))
    post()
    post(max_tokens=3)
    post(max_completion_tokens=4)
    assert [request.sampling.max_tokens for request in engine.requests] == [64 - prompt, 3, 4]


def test_an_answer_is_no_longer_than_the_service_allows(base: BasePack) -> None:
    engine = FakeEngine()
    client = Client(service(base, engine, limits={"max_tokens": 7}))
    client.post("/v1/chat/completions", {"model": BASE, "messages": HELLO})
    assert engine.requests[0].sampling.max_tokens == 7


def test_parts_of_text_are_lines(post: Post, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    post(messages=[{"role": "user", "content": parts}])
    assert engine.requests[0].prompt == tuple(tokens("[user]a\nb[assistant]"))


def test_logprobs_have_the_bytes_of_each_token(post: Post) -> None:
    choice = post(logprobs=True, top_logprobs=1, max_tokens=1)["choices"][0]
    one = {"token": "o", "logprob": -0.5, "bytes": [ord("o")]}
    assert choice["logprobs"] == {"content": [{**one, "top_logprobs": [one]}], "refusal": None}


def test_without_logprobs_none_are_asked_for(post: Post, engine: FakeEngine) -> None:
    post(logprobs=False)
    post(logprobs=True)
    assert [request.sampling.logprobs for request in engine.requests] == [None, 0]


def test_n_answers_of_one_chat(post: Post) -> None:
    answer = post(n=3, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == len(tokens("[user]Hi[assistant]"))


def test_what_clients_send_when_they_mean_nothing_is_taken(post: Post) -> None:
    again = {"role": "assistant", "content": "ok", "tool_calls": None, "function_call": None, "refusal": None}
    answer = post(
        messages=[*HELLO, again, *HELLO], tools=[], tool_choice="none", response_format={"type": "text"}, store=False,
        parallel_tool_calls=True, metadata={}, modalities=["text"], functions=None,
    )  # fmt: skip
    assert answer["choices"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_completion_tokens": 1000}, "max_completion_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages.0.content"),
        ({"messages": [{"role": "", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
    ],
)
def test_what_cannot_be_done_in_a_chat_is_refused_by_its_field(post: Post, fields: dict[str, Any], param: str) -> None:
    error = refusal(post(**fields))
    assert error["param"].startswith(param)
    assert param in error["message"]


def test_a_picture_is_refused_by_its_type(post: Post) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    error = refusal(post(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, picture]}]))
    assert "image_url" in error["message"]


def test_what_the_template_refuses_is_400_in_its_own_words(post: Post) -> None:
    error = refusal(post(messages=[{"role": "secret", "content": "x"}]))
    assert "no secrets" in error["message"]


def test_a_base_without_a_template_points_to_completions(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(), template=False))
    error = refusal(client.post("/v1/chat/completions", {"model": BASE, "messages": HELLO}))
    assert "/v1/completions" in error["message"]
    assert error["code"] == "no_chat_template"


def test_a_chat_longer_than_the_context_is_refused(post: Post) -> None:
    error = refusal(post(messages=[{"role": "user", "content": "x" * 64}]))
    assert error["code"] == "context_length_exceeded"


def test_the_fake_knows_the_tokenizer() -> None:
    assert [token_of("o")] == tokens("o")
