"""The openai package and curl against a real server, whose engine computes what it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import ChatMessage
from fedlora.exported.profiles import Profile
from fedlora_serve.embedding import Embedder
from fedlora_serve.local.engine import Engine
from fedlora_serve.text.text_stream import TextStream

from tests.serve.http.fake_engine import FakeEngine, failing
from tests.serve.http.own_server import served
from tests.serve.http.real_services import ADMIN_KEY, SLOW_KEY, WEB_KEY, opened
from tests.serve.http.services import BASE, TEMPLATE, running, service
from tests.serve.speakers import Speaker, greedy
from tests.tiny.tokenizer import EOS

Clients = Callable[..., openai.OpenAI]
HELLO: Any = [{"role": "user", "content": "Hi"}]
LIKELIEST: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
PROMPT = [70, 3, 200, 14, 15, 9, 26]


@pytest.fixture(scope="module")
def url(folders: dict[Profile, Path], adapter_folder: Path) -> Iterator[str]:
    """A base with two adapters and room for 12 answers, 4 of them in the batch."""
    adapters = {"poet": str(adapter_folder / "adapter-1"), "team/cook": str(adapter_folder / "adapter-4")}
    options: dict[str, Any] = {"adapter_folder": str(adapter_folder), "rows": 4, "queue": 8}
    with opened(folders["kernel"], adapters=adapters, **options) as state, served(state) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def clients(url: str) -> Iterator[Clients]:
    """Clients of the service, by their key."""
    made = []

    def client(key: str = WEB_KEY) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
        return made[-1]

    yield client
    for each in made:
        each.close()


@pytest.fixture
def client(clients: Clients) -> openai.OpenAI:
    return clients()


@pytest.fixture
def curl(url: str) -> Callable[..., tuple[int, str]]:
    """Asks with curl: the status and the body."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not there")

    def ask(path: str, body: object = None, key: str = WEB_KEY, method: str = "") -> tuple[int, str]:
        command = [program, "-sN", f"{url}{path}", "-H", f"Authorization: Bearer {key}", "-w", "\n%{http_code}"]
        command += ["-X", method] if method else []
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    return ask


def likeliest(engine: Engine, prompt: Sequence[int], speaker: Speaker | None) -> str:
    """The text of one sequence alone, as LIKELIEST asks for it."""
    stream = TextStream(engine.tokenizer, prompt)
    return "".join(map(stream.push, greedy(engine, prompt, speaker, LIKELIEST["max_tokens"]))) + stream.finish()


def chat_tokens(engine: Engine, messages: Sequence[dict[str, str]]) -> list[int]:
    template = ChatTemplate(TEMPLATE, "the template", {})
    told = [ChatMessage(message["role"], message["content"]) for message in messages]
    text = template.text(told, "messages", add_generation_prompt=True)
    return list(engine.tokenizer.encode(text, add_special_tokens=False).ids)


def test_openai_gets_the_text_of_the_adapter_that_it_names(
    client: openai.OpenAI, single: Engine, speakers: list[Speaker]
) -> None:
    texts = set()
    for model, speaker in (("base", None), ("poet", speakers[1]), ("team/cook", speakers[4])):
        answer = client.completions.create(model=model, prompt=PROMPT, **LIKELIEST)
        assert answer.choices[0].text == likeliest(single, PROMPT, speaker)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 24)
        texts.add(answer.choices[0].text)
    assert len(texts) == 3


def test_openai_chats_and_goes_on_with_the_answer(
    client: openai.OpenAI, single: Engine, speakers: list[Speaker]
) -> None:
    answer = client.chat.completions.create(
        model="poet", messages=HELLO, logprobs=True, top_logprobs=2, seed=3, **LIKELIEST
    )
    said = answer.choices[0].message
    assert said.content == likeliest(single, chat_tokens(single, HELLO), speakers[1])
    assert answer.choices[0].logprobs is not None
    logprobs = answer.choices[0].logprobs.content or []
    assert len(logprobs) == 24
    for one in logprobs:  # the likeliest token was taken each time
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, one.top_logprobs[0].logprob)
        assert one.logprob >= one.top_logprobs[1].logprob
    more = [*HELLO, {"role": "assistant", "content": said.content or ""}, {"role": "user", "content": "And?"}]
    again = client.chat.completions.create(model="poet", messages=more, **LIKELIEST)
    assert again.choices[0].message.content == likeliest(single, chat_tokens(single, more), speakers[1])
    assert client.chat.completions.create(model="poet", messages=[*HELLO, said.model_dump()], max_tokens=1).choices


def test_openai_streams_the_chat_that_it_gets_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="team/cook", messages=HELLO, **LIKELIEST)
    chunks = list(
        client.chat.completions.create(
            model="team/cook", messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], stream=True,
            stream_options={"include_usage": True}, **LIKELIEST,
        )
    )  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


def test_openais_helper_for_streams_collects_the_chat_up_to_a_stop_string(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="base", messages=HELLO, **LIKELIEST).choices[0].message.content or ""
    stop = whole[10:12]
    with client.chat.completions.stream(model="base", messages=HELLO, stop=[stop], **LIKELIEST) as stream:
        for _ in stream:
            pass
        [choice] = stream.get_final_completion().choices
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


def test_openai_completes_two_ways_with_log_probabilities_and_the_same_with_the_same_seed(
    client: openai.OpenAI,
) -> None:
    def ask() -> list[openai.types.CompletionChoice]:
        return client.completions.create(
            model="poet", prompt=["ab", "c"], max_tokens=8, n=2, logprobs=3, seed=7, extra_body={"ignore_eos": True}
        ).choices

    choices = ask()
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert choices[0].text != choices[1].text
    for choice in choices:
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
        assert all(
            top[token] == value <= 0
            for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
        )
    assert [choice.text for choice in ask()] == [choice.text for choice in choices]


def test_openai_streams_both_answers_of_a_completion(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "base", "prompt": "ab", "max_tokens": 8, "n": 2, "seed": 1}
    whole = client.completions.create(**fields)
    texts = ["", ""]
    for chunk in client.completions.create(**fields, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_openai_lists_models(client: openai.OpenAI, speakers: list[Speaker]) -> None:
    assert [model.id for model in client.models.list()] == ["base", "poet", "team/cook"]
    model = client.models.retrieve("team/cook")
    assert model.owned_by == "fedlora"
    assert model.model_extra is not None
    assert model.model_extra["digest"] == speakers[4].version.digest


def test_openai_raises_its_own_errors(client: openai.OpenAI, clients: Clients) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        client.chat.completions.create(model="poem", messages=HELLO)
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("poem")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="base", messages=HELLO, temperature=-3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="base", prompt="x" * 1000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError) as unknown:
        clients("wrong").models.list()
    assert unknown.value.code == "invalid_api_key"


def test_openai_is_told_that_chats_are_what_it_asks_for_as_responses(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.responses.create(model="base", input="Hi")


def test_openai_stops_at_a_token_and_sees_the_special_ones(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "base", "prompt": "ab", "max_tokens": 6, "temperature": 0}
    for stop in ({"stop": ["</s>"]}, {"stop_token_ids": [EOS]}):
        body: dict[str, Any] = {"ignore_eos": True, **stop}
        answer = client.completions.create(**fields, logit_bias={str(EOS): 100}, extra_body=body)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    shown = {"ignore_eos": True, "skip_special_tokens": False}
    answer = client.completions.create(**fields, logit_bias={str(EOS): 100}, extra_body=shown)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("</s>" * 6, "length")
    chunks = client.completions.create(**fields, logit_bias={str(EOS): 100}, extra_body=shown, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "</s>" * 6
    least = client.completions.create(**fields, logit_bias={str(EOS): 100}, extra_body={"min_tokens": 4})
    assert least.usage is not None
    assert (least.usage.completion_tokens, least.choices[0].finish_reason) == (5, "stop")


def test_openai_is_told_when_to_come_again(client: openai.OpenAI, clients: Clients) -> None:
    slow = clients(SLOW_KEY)
    slow.completions.create(model="base", prompt="a", max_tokens=1)
    with pytest.raises(openai.RateLimitError) as limited:
        slow.completions.create(model="base", prompt="a", max_tokens=1)
    assert limited.value.code == "rate_limit_exceeded"
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 60
    with pytest.raises(openai.InternalServerError) as busy:  # 16 answers at a time: no room for 4 of them
        client.completions.create(model="base", prompt="a", n=16, max_tokens=200, extra_body={"ignore_eos": True})
    assert (busy.value.status_code, busy.value.code) == (503, "busy")
    assert int(busy.value.response.headers["retry-after"]) > 0
    patient = client.with_options(max_retries=3)  # it waits for as long as it is told to
    assert patient.completions.create(model="base", prompt="a", max_tokens=1).choices  # those before were taken back


def test_openai_raises_what_fails_in_the_middle_of_a_stream(base: BasePack) -> None:
    engine = FakeEngine(failing("the engine broke", after="one "))
    with (
        running(service(base, engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="the engine broke"),
    ):
        list(client.completions.create(model=BASE, prompt="a", stream=True))


def test_openai_embeds_as_the_encoder_does(encoder_model: Path) -> None:
    embedder = Embedder(encoder_model, threads=1)
    texts = ["abc", "de"]
    expected = embedder.embed([embedder.tokens(text) for text in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with opened(encoder_model) as state, served(state) as (host, port):
        base_url = f"http://{host}:{port}/v1"
        with openai.OpenAI(base_url=base_url, api_key=WEB_KEY, max_retries=0) as client:
            for encoding in ({}, {"encoding_format": "float"}):  # it asks for base64 by itself
                answer = client.embeddings.create(model="base", input=texts, **encoding)  # type: ignore[arg-type]
                assert np.allclose([one.embedding for one in answer.data], expected, atol=1e-6)
            with pytest.raises(openai.BadRequestError) as wrong:
                client.chat.completions.create(model="base", messages=HELLO)
            assert wrong.value.code == "unsupported_model"


def test_curl_completes_and_streams(
    curl: Callable[..., tuple[int, str]], single: Engine, speakers: list[Speaker]
) -> None:
    body = {"model": "poet", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    status, whole = curl("/v1/completions", body)
    assert status == 200
    assert json.loads(whole)["choices"][0]["text"] == likeliest(single, PROMPT, speakers[1])
    status, stream = curl("/v1/completions", body | {"stream": True})
    assert status == 200
    assert stream.endswith("data: [DONE]\n\n")
    pieces = [json.loads(event.removeprefix("data: ")) for event in stream.split("\n\n")[:-2]]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == json.loads(whole)["choices"][0]["text"]


def test_curl_brings_an_adapter_keeps_it_and_takes_it_away(
    curl: Callable[..., tuple[int, str]], single: Engine, speakers: list[Speaker]
) -> None:
    load = {"lora_name": "team/new", "lora_path": "adapter-6"}
    assert curl("/v1/load_lora_adapter", load)[0] == 403  # the web's key is not the operator's
    told = curl("/v1/load_lora_adapter", load, ADMIN_KEY)
    assert told == (200, "Success: LoRA adapter 'team/new' added successfully.")
    status, again = curl("/v1/load_lora_adapter", load, ADMIN_KEY)
    assert (status, json.loads(again)["error"]["code"]) == (400, "adapter_exists")
    body = {"model": "team/new", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    answer = json.loads(curl("/v1/completions", body)[1])
    assert answer["choices"][0]["text"] == likeliest(single, PROMPT, speakers[6])
    for verb, pinned in (("pin", True), ("unpin", False)):
        assert curl(f"/v1/adapters/team/new/{verb}", key=ADMIN_KEY, method="POST") == (204, "")
        listed = {row["name"]: row for row in json.loads(curl("/v1/adapters")[1])["data"]}
        assert (listed["team/new"]["pinned"], listed["team/new"]["source"]) == (pinned, "adapter-6")
    assert 'model_name="team/new"' in curl("/metrics", key=ADMIN_KEY)[1]
    told = curl("/v1/unload_lora_adapter", {"lora_name": "team/new"}, ADMIN_KEY)
    assert told == (200, "Success: LoRA adapter 'team/new' removed successfully.")
    assert curl("/v1/completions", body)[0] == 404
    assert curl("/v1/unload_lora_adapter", {"lora_name": "team/new"}, ADMIN_KEY)[0] == 404
