"""Answers as server-sent events."""

from __future__ import annotations

from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.batching.request import Finished, Piece, Request
from fedlora_serve.http.generation import event_stream as sse

from tests.serve.http.fake_engine import FakeEngine, endless, failing, words
from tests.serve.http.services import BASE, Client, events, refusal, service, tokens

HELLO = [{"role": "user", "content": "Hi"}]


def stream(client: Client, path: str, **fields: Any) -> list[Any]:
    """The events of a stream, whose headers are right."""
    response = client.post(path, {"model": BASE, "stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    return events(response.text)


def chat(engine: FakeEngine, base: BasePack, **fields: Any) -> list[Any]:
    return stream(Client(service(base, engine)), "/v1/chat/completions", **{"messages": HELLO, **fields})


def complete(engine: FakeEngine, base: BasePack, **fields: Any) -> list[Any]:
    return stream(Client(service(base, engine)), "/v1/completions", **{"prompt": "Say", **fields})


def test_a_chat_comes_as_role_text_reason_and_done(base: BasePack) -> None:
    *chunks, done = chat(FakeEngine(pause_s=0.01), base)
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "one two three"
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_in_a_chunk_of_its_own_where_it_is_asked_for(base: BasePack) -> None:
    engine = FakeEngine(words("one two three", cached=4))
    for run in (chat, complete):
        *chunks, last, done = run(engine, base, stream_options={"include_usage": True})
        assert done == "[DONE]"
        assert all(chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


def test_usage_grows_from_chunk_to_chunk_where_that_is_asked_for(base: BasePack) -> None:
    engine = FakeEngine(words("one two three"), pause_s=0.05)
    for run in (chat, complete):
        *chunks, last, _ = run(engine, base, stream_options={"include_usage": True, "continuous_usage_stats": True})
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["usage"]]
        assert counts == sorted(counts)
        assert counts[-1] == last["usage"]["completion_tokens"] == 3
        assert counts[0] < 3
        assert all(
            chunk["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for chunk in chunks if chunk["usage"]
        )


def test_a_completion_comes_as_text_and_reason(base: BasePack) -> None:
    *chunks, done = complete(FakeEngine(pause_s=0.01), base, max_tokens=2)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "one two"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_several_answers_are_told_apart_by_their_index(base: BasePack) -> None:
    engine = FakeEngine(pause_s=0.005)
    *chunks, _ = complete(engine, base, prompt=["Say", "Tell"], n=2, echo=True)
    texts = ["", "", "", ""]
    reasons = []
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons += [choice["index"]] if choice["finish_reason"] else []
    assert texts == ["Sayone two three"] * 2 + ["Tellone two three"] * 2
    assert sorted(reasons) == [0, 1, 2, 3]
    *chunks, _ = chat(engine, base, n=2)
    roles = [chunk["choices"][0]["index"] for chunk in chunks if "role" in chunk["choices"][0]["delta"]]
    assert roles == [0, 1]


def test_logprobs_come_with_their_text_and_their_offsets_go_on(base: BasePack) -> None:
    engine = FakeEngine(pause_s=0.01)
    *chunks, _ = complete(engine, base, logprobs=1)
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [token for one in found for token in one["tokens"]] == ["o", "t", "t"]
    assert [offset for one in found for offset in one["text_offset"]] == [0, 1, 2]
    *chunks, _ = chat(engine, base, logprobs=True)
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [token["token"] for one in found for token in one["content"]] == ["o", "t", "t"]


def test_pieces_that_wait_are_joined_into_one_chunk(base: BasePack) -> None:
    def burst(request: Request) -> Any:
        yield from (Piece(text=character) for character in "abcdefgh" * 100)
        yield Finished(reason="stop", completion_tokens=800)

    *chunks, _ = complete(FakeEngine(burst), base)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abcdefgh" * 100
    assert len(chunks) < 800


def test_an_error_on_the_way_is_the_last_event(base: BasePack) -> None:
    answer = complete(FakeEngine(failing("scores are not finite", after="so far"), pause_s=0.01), base)
    assert answer[0]["choices"][0]["text"] == "so far"
    assert set(answer[-1]) == {"error"}
    assert "not finite" in answer[-1]["error"]["message"]


def test_the_end_of_the_service_is_told_to_streams(base: BasePack) -> None:
    def closing(request: Request) -> Any:
        yield Piece(text="so far")
        yield Finished(reason="cancelled", completion_tokens=1)

    last = chat(FakeEngine(closing), base)[-1]
    assert last["error"]["code"] == "cancelled"


def test_one_answer_that_fails_cancels_those_beside_it(base: BasePack) -> None:
    failed = failing("broken")

    def script(request: Request) -> Any:
        return failed(request) if request.sampling.seed == 1 else endless()(request)

    engine = FakeEngine(script, pause_s=0.01)
    answer = complete(engine, base, n=3, seed=0)
    assert "broken" in answer[-1]["error"]["message"]
    assert sorted(request.sampling.seed or 0 for request in engine.cancelled) == [0, 2]


def test_a_stream_that_takes_too_long_ends_with_an_error(base: BasePack) -> None:
    engine = FakeEngine(endless(), pause_s=0.01)
    client = Client(service(base, engine, limits={"request_timeout_s": 0.1}))
    assert stream(client, "/v1/completions", prompt="x")[-1]["error"]["code"] == "request_timeout"
    assert len(engine.cancelled) == 1


def test_what_is_refused_before_the_first_byte_has_a_status_of_its_own(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(most=0)))
    refusal(client.post("/v1/completions", {"model": BASE, "prompt": "x", "stream": True}), 503)
    refusal(client.post("/v1/completions", {"model": "none", "prompt": "x", "stream": True}), 404)


def test_text_of_every_kind_arrives_as_it_is(base: BasePack) -> None:
    text = 'line\nline\r\n\u2028 \0 "quoted" Zürich 🦙 data: [DONE]'

    def script(request: Request) -> Any:
        yield Piece(text=text)
        yield Finished(reason="stop", completion_tokens=1)

    *chunks, _ = complete(FakeEngine(script), base)
    assert chunks[0]["choices"][0]["text"] == text


def test_a_stream_says_which_adapter_answers(base: BasePack) -> None:
    state = service(base, FakeEngine(), adapters=["poet"])
    body = {"model": "poet", "prompt": tokens("x"), "stream": True}
    response = Client(state).post("/v1/completions", body)
    assert response.headers["X-Adapter-Digest"] == state.store.list()[0].digest


def test_what_is_counted_has_every_answer_once(base: BasePack) -> None:
    state = service(base, FakeEngine(pause_s=0.01))
    Client(state).post("/v1/completions", {"model": BASE, "prompt": [1, 2], "n": 2, "stream": True})
    lines = dict(line.rsplit(" ", 1) for line in state.metrics.text().decode().splitlines() if line[0] != "#")
    label = f'{{model_name="{BASE}"}}'
    assert lines[f'fedlora:request_success_total{{finished_reason="stop",model_name="{BASE}"}}'] == "2.0"
    assert lines[f"fedlora:prompt_tokens_total{label}"] == "4.0"
    assert lines[f"fedlora:generation_tokens_total{label}"] == "6.0"
    assert lines[f"fedlora:time_to_first_token_seconds_count{label}"] == "2.0"
    assert lines[f"fedlora:inter_token_latency_seconds_count{label}"] == "4.0"


def test_a_silent_stream_shows_that_it_lives(base: BasePack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "QUIET_S", 0.02)
    client = Client(service(base, FakeEngine(pause_s=0.1)))
    text = client.post("/v1/completions", {"model": BASE, "prompt": "x", "stream": True}).text
    parts = text.removesuffix("\n\n").split("\n\n")
    comments = [part for part in parts if part.startswith(":")]
    assert len(comments) >= 3
    rest = "".join(f"{part}\n\n" for part in parts if part not in comments)
    assert "".join(chunk["choices"][0]["text"] for chunk in events(rest)[:-1]) == "one two three"
