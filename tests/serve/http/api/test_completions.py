"""POST /v1/completions, whole answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.api import chat, completions
from fedlora_serve.http.generation.prompts import chat_prompt, completion_prompts
from fedlora_serve.http.protocol.chat import ChatBody
from fedlora_serve.http.protocol.errors import ApiError

from tests.serve.http.fake_engine import FakeEngine, failing, words
from tests.serve.http.services import BASE, Client, fake_adapter, refusal, service, tokens
from tests.tiny.tokenizer import BOS

Post = Callable[..., Any]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(words("one two three", cached=2))


@pytest.fixture
def post(base: BasePack, engine: FakeEngine) -> Post:
    """Ask for a completion; the answer's JSON where it is a success, else the response."""
    client = Client(service(base, engine, adapters=["poet", "cook"]))

    def ask(**fields: Any) -> Any:
        response = client.post("/v1/completions", {"model": BASE, "prompt": "Say", **fields})
        return response.json() if response.status_code == 200 else response

    return ask


def test_a_completion_has_its_text_and_its_usage(post: Post, engine: FakeEngine) -> None:
    answer = post()
    assert answer["object"] == "text_completion"
    assert answer["model"] == BASE
    assert answer["choices"] == [{"index": 0, "text": "one two three", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    [request] = engine.requests
    assert request.prompt == (BOS, *tokens("Say"))
    assert request.sampling.temperature == 1.0
    assert request.sampling.max_tokens == 16
    assert request.adapter is None


def test_tokens_are_taken_as_they_are(post: Post, engine: FakeEngine) -> None:
    post(prompt=[3, 5])
    assert engine.requests[0].prompt == (3, 5)


def test_every_prompt_gets_n_answers_side_by_side_with_seeds_of_their_own(post: Post, engine: FakeEngine) -> None:
    answer = post(prompt=["ab", "c"], n=2, seed=7)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 3 + 2  # each prompt once
    assert answer["usage"]["completion_tokens"] == 4 * 3
    asked = sorted((request.sampling.seed or 0, list(request.prompt[1:])) for request in engine.requests)
    assert asked == [(7, tokens("ab")), (8, tokens("ab")), (9, tokens("c")), (10, tokens("c"))]


def test_a_prompt_without_added_special_tokens_is_its_text_alone(post: Post, engine: FakeEngine) -> None:
    post(prompt=["a", "<s>a"], add_special_tokens=False)
    post(prompt="<s>a", add_special_tokens=True)
    assert {request.prompt for request in engine.requests[:2]} == {tuple(tokens("a")), (BOS, *tokens("a"))}
    assert engine.requests[2].prompt == (BOS, *tokens("a"))  # what the text spells is not doubled
    assert refusal(post(prompt="", add_special_tokens=False))["param"] == "prompt"


def test_lists_of_tokens_are_prompts(post: Post, engine: FakeEngine) -> None:
    assert len(post(prompt=[[1, 2], [3]])["choices"]) == 2


def test_an_adapter_answers_and_says_which_version_it_is(base: BasePack) -> None:
    engine = FakeEngine(words("hello", speaker=True))
    state = service(base, engine, adapters=["poet"])
    response = Client(state).post("/v1/completions", {"model": "poet", "prompt": "x", "n": 3})
    [status] = state.store.list()
    assert [choice["text"] for choice in response.json()["choices"]] == ["poet: hello"] * 3
    assert response.headers["X-Adapter-Digest"] == status.digest
    assert response.json()["system_fingerprint"] == f"fp-{base.fingerprint[:12]}-{status.digest[:12]}"
    assert status.users == 0  # all three gave it back


def test_the_base_says_that_no_adapter_answered(base: BasePack) -> None:
    client = Client(service(base, FakeEngine()))
    response = client.post("/v1/completions", {"model": BASE, "prompt": "x"})
    assert response.headers["X-Adapter-Digest"] == "none"


def test_every_way_to_choose_reaches_the_engine(post: Post, engine: FakeEngine) -> None:
    post(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=-0.3, logit_bias={"5": -100, "7": 2.5}, seed=-1, max_tokens=9, stop=["a", "b"], ignore_eos=True,
        logprobs=3, user="me", stop_token_ids=[3, 5.0], include_stop_str_in_output=True, min_tokens=2,
        skip_special_tokens=False,
    )  # fmt: skip
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.2, -0.3)
    assert sampling.logit_bias == {5: -100.0, 7: 2.5}
    assert (sampling.max_tokens, sampling.stop, sampling.ignore_eos, sampling.logprobs) == (9, ("a", "b"), True, 3)
    assert (sampling.stop_token_ids, sampling.min_tokens) == ((3, 5), 2)
    assert (sampling.include_stop_str_in_output, sampling.skip_special_tokens) == (True, False)
    assert sampling.seed is not None
    assert 0 <= sampling.seed < 1 << 63


def test_null_is_what_a_field_is_without_it(post: Post, engine: FakeEngine) -> None:
    nothing = dict.fromkeys(
        ["n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "logit_bias", "stream", "echo",
         "logprobs", "best_of", "suffix", "user", "stream_options", "presence_penalty", "ignore_eos", "stop_token_ids",
         "include_stop_str_in_output", "min_tokens", "skip_special_tokens", "add_special_tokens"]
    )  # fmt: skip
    post()
    post(**nothing)
    assert engine.requests[0].sampling == engine.requests[1].sampling


def test_an_answer_ends_at_max_tokens(post: Post) -> None:
    answer = post(max_tokens=2)
    assert answer["choices"][0]["text"] == "one two"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_echo_puts_the_prompt_before_each_answer(post: Post) -> None:
    answer = post(prompt=["Say: ", "Tell: "], n=2, echo=True)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["Say: one two three"] * 2 + ["Tell: one two three"] * 2


def test_echo_of_tokens_is_their_text(post: Post) -> None:
    assert post(prompt=tokens("Hm "), echo=True)["choices"][0]["text"] == "Hm one two three"


def test_logprobs_have_the_chosen_token_among_the_likeliest(post: Post) -> None:
    logprobs = post(logprobs=2, max_tokens=2)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["o", "t"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert logprobs["top_logprobs"] == [{"o": -0.5, "p": -1.5}, {"t": -0.5, "u": -1.5}]
    assert logprobs["text_offset"] == [0, 1]


def test_logprobs_0_tells_of_the_chosen_token_alone(post: Post) -> None:
    logprobs = post(logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-0.5]
    assert logprobs["top_logprobs"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"stop_token_ids": ["<s>"]}, "stop_token_ids"),
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"prompt": ""}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [10**400 + 1]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"\udfff": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 61}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": "m\udc00"}, "model"),
        ({"user": 5}, "user"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_field(
    post: Post, engine: FakeEngine, fields: dict[str, Any], param: str | None
) -> None:
    if param is None:  # without a first token of the model's own this would be empty
        assert post(**fields)["usage"]["prompt_tokens"] == 1
        return
    error = refusal(post(**fields))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param or error["param"].startswith(f"{param}.")
    assert param in error["message"]
    assert engine.requests == []


def test_an_empty_value_of_what_cannot_be_done_is_nothing(post: Post) -> None:
    assert post(suffix="", guided_json={}, bad_words=[], use_beam_search=False, min_tokens=0)["choices"]
    assert post(logit_bias=[])["choices"]
    assert post(logprobs=False)["choices"][0]["logprobs"] is None
    assert refusal(post(logprobs=True))["param"] == "logprobs"


def test_an_unknown_field_is_refused_by_its_name(post: Post) -> None:
    assert refusal(post(something_new={"a": [1]}))["param"] == "something_new"


def test_a_prompt_longer_than_the_context_is_refused_with_openais_code(post: Post) -> None:
    error = refusal(post(prompt="x" * 64))
    assert error["code"] == "context_length_exceeded"
    assert "64" in error["message"]


def test_a_default_length_is_cut_to_what_the_context_leaves(post: Post, engine: FakeEngine) -> None:
    post(prompt="x" * 60)
    assert engine.requests[0].sampling.max_tokens == 64 - 61


def test_virtual_tokens_of_an_adapter_take_room_in_the_context_and_are_in_no_usage(
    base: BasePack, engine: FakeEngine
) -> None:
    state = service(base, engine)
    heads = np.zeros((2, 1, 10, 1), np.float32)
    state.store = AdapterStore(
        base, budget_bytes=1 << 20, read=lambda path, base, **how: replace(fake_adapter(path, base), prefix=heads)
    )
    state.store.load("poet", Path("poet"))
    client = Client(state)

    def answer(**fields: Any) -> Any:
        return client.post("/v1/completions", {"model": "poet", **fields})

    assert answer(prompt="x" * 50).json()["usage"]["prompt_tokens"] == 51
    assert engine.requests[0].sampling.max_tokens == 64 - 10 - 51
    error = refusal(answer(prompt="x" * 50, max_tokens=4))
    assert error["code"] == "context_length_exceeded"
    assert "the prompt has 51 tokens, its adapter 10 virtual ones and max_tokens is 4" in error["message"]


def test_prompts_times_n_are_bounded(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(), limits={"max_answers": 4}))
    body = {"model": BASE, "prompt": ["a", "b", "c"], "n": 2}
    assert refusal(client.post("/v1/completions", body))["param"] == "n"


def test_an_unknown_model_is_404_and_tells_names_like_it(post: Post) -> None:
    error = refusal(post(model="poetry"), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "poet" in error["message"]


def test_a_full_queue_is_503_and_takes_back_the_answers_that_were_begun(base: BasePack) -> None:
    engine = FakeEngine(pause_s=0.5, most=3)
    state = service(base, engine, adapters=["poet"])
    client = Client(state)
    response = client.post("/v1/completions", {"model": "poet", "prompt": "x", "n": 4})
    assert refusal(response, 503)["code"] == "busy"
    assert int(response.headers["Retry-After"]) >= 1
    assert engine.cancelled == engine.requests
    assert len(engine.requests) == 3


def test_an_answer_that_fails_is_500_with_what_the_engine_says(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(failing("scores are not finite", after="so far"))))
    error = refusal(client.post("/v1/completions", {"model": BASE, "prompt": "x"}), 500)
    assert "not finite" in error["message"]
    assert error["type"] == "server_error"


def test_an_answer_that_takes_too_long_is_503_and_cancelled(base: BasePack) -> None:
    engine = FakeEngine(pause_s=10)
    client = Client(service(base, engine, limits={"request_timeout_s": 0.05}))
    error = refusal(client.post("/v1/completions", {"model": BASE, "prompt": "x", "n": 2}), 503)
    assert error["code"] == "request_timeout"
    assert len(engine.cancelled) == 2


def test_what_nobody_foresaw_is_500_without_a_word_about_the_inside(base: BasePack) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("the secret")

    engine = FakeEngine()
    engine.submit = broken  # type: ignore[method-assign]
    client = Client(service(base, engine))
    error = refusal(client.post("/v1/completions", {"model": BASE, "prompt": "x"}), 500)
    assert "secret" not in json.dumps(error)


def test_a_number_without_a_fraction_is_whole_however_it_is_written(post: Post, engine: FakeEngine) -> None:
    post(max_tokens=2.0, n=1.0, prompt=[3.0, 5])
    assert engine.requests[0].sampling.max_tokens == 2
    assert engine.requests[0].prompt == (3, 5)
    assert refusal(post(max_tokens=2.5))["param"] == "max_tokens"


def test_the_log_probabilities_of_one_request_are_bounded(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(), limits={"max_logprobs": 120}))
    body = {"model": BASE, "prompt": ["a", "b"], "n": 2, "max_tokens": 10}
    assert client.post("/v1/completions", {**body, "logprobs": 2}).status_code == 200
    error = refusal(client.post("/v1/completions", {**body, "logprobs": 3}))
    assert (error["param"], "160 log-probabilities" in error["message"]) == ("logprobs", True)
    chat = {"model": BASE, "messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 5}
    error = refusal(client.post("/v1/chat/completions", chat))  # as many as the context leaves
    assert "set max_tokens lower" in error["message"]


@pytest.mark.parametrize(
    ("module", "function", "path", "fields"),
    [
        (completions, "completion_logprobs", "/v1/completions", {"prompt": "a", "logprobs": 1}),
        (
            chat,
            "whole_chat_logprobs",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True},
        ),
    ],
)
def test_log_probabilities_of_whole_answers_are_written_off_the_event_loop(
    base: BasePack, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, path: str, fields: dict[str, Any]
) -> None:
    threads, write = list[threading.Thread](), getattr(module, function)

    def watched(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return write(*args, **options)

    monkeypatch.setattr(module, function, watched)
    assert Client(service(base, FakeEngine())).post(path, {"model": BASE, **fields}).status_code == 200
    assert threads
    assert threading.current_thread() not in threads  # which has the loop


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_a_long_text_is_cut_into_tokens_while_others_are_answered(base: BasePack, route: str) -> None:
    """The event loop turns many times meanwhile, which it does not where a thread holds Python's lock."""
    state = service(base, FakeEngine(max_tokens=131_072))  # with less, a part of the text is enough to refuse it
    text = "some words " * 100_000
    body = ChatBody.model_validate({"model": BASE, "messages": [{"role": "user", "content": text}]})

    async def turns() -> int:
        coming: asyncio.Task[Any]
        if route == "chat":
            coming = asyncio.create_task(chat_prompt(state, body, choices=1))
        else:
            coming = asyncio.create_task(completion_prompts(state, [text], choices=1))
        count = 0
        while not coming.done():
            await asyncio.sleep(0.001)
            count += 1
        with pytest.raises(ApiError, match="tokens"):
            coming.result()
        return count

    assert asyncio.run(turns()) > 20


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_minus_one_asks_for_as_many_tokens_as_there_is_room_for(base: BasePack, path: str) -> None:
    engine = FakeEngine(words("one two"), max_tokens=64)
    asked = {"prompt": [1, 2, 3]} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    client = Client(service(base, engine))
    assert client.post(path, {"model": BASE, "max_tokens": -1, **asked}).status_code == 200
    [request] = engine.requests
    assert request.sampling.max_tokens == 64 - len(request.prompt)
    for wrong in (0, -2):
        message = refusal(client.post(path, {"model": BASE, "max_tokens": wrong, **asked}))["message"]
        assert message == f"max_tokens: expected 1 or more tokens, or -1 for as many as there is room for, got {wrong}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "hot"}, 'temperature: expected a number, got "hot"'),
        ({"temperature": -1}, "temperature: expected at least 0, got -1"),
        ({"top_p": 0}, "top_p: expected more than 0, got 0"),
        ({"n": 0}, "n: expected at least 1, got 0"),
        ({"n": 1.5}, "n: expected a whole number, got 1.5"),
        ({"stream": "yes"}, 'stream: expected true or false, got "yes"'),
        ({"service_tier": "flex"}, "service_tier: expected 'auto' or 'default', got \"flex\""),
        ({"model": ""}, "model: expected at least 1, got 0"),
        ({"model": 3}, "model: expected a string, got 3"),
        ({"stream_options": 1}, "stream_options: expected an object, got 1"),
    ],
)
def test_what_is_wrong_with_a_field_is_told_in_words_of_our_own(
    base: BasePack, fields: dict[str, Any], message: str
) -> None:
    client = Client(service(base, FakeEngine()))
    told = refusal(client.post("/v1/completions", {"model": BASE, "prompt": "a", **fields}))["message"]
    assert told == message
    assert "nput should" not in told
