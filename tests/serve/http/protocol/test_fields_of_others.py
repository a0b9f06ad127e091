"""Every field that OpenAI and other servers take on routes that this service has: honoured, or refused by its name.

`fields_of_others.json` has their names, and where each list was read.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, get_args

import openai.types.chat.completion_create_params as openai_chat
import openai.types.completion_create_params as openai_completions
import openai.types.embedding_create_params as openai_embeddings
import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.http.api.adapters import LoadAdapter, UnloadAdapter
from fedlora_serve.http.protocol.chat import ChatBody
from fedlora_serve.http.protocol.classification import ClassificationBody
from fedlora_serve.http.protocol.completions import CompletionBody
from fedlora_serve.http.protocol.embeddings import EmbeddingBody
from fedlora_serve.http.protocol.field_types import NotSupported
from fedlora_serve.http.protocol.generation_body import StreamOptions
from fedlora_serve.http.protocol.other_fields import OTHER_FIELDS
from fedlora_serve.http.protocol.request_body import NamedFields
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.serve.http.fake_engine import FakeEngine
from tests.serve.http.services import BASE, Client, refusal, service

HERE = Path(__file__).parent
PEERS: dict[str, dict[str, Any]] = json.loads((HERE / "fields_of_others.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, tuple[type[NamedFields], dict[str, Any]]] = {
    "chat": (ChatBody, {"model": BASE, "messages": HELLO}),
    "completions": (CompletionBody, {"model": BASE, "prompt": "x"}),
    "embeddings": (EmbeddingBody, {"model": BASE, "input": "x"}),
    "labels": (ClassificationBody, {"model": BASE, "input": "x"}),
    "stream_options": (StreamOptions, {}),
    "load_lora_adapter": (LoadAdapter, {"lora_name": "a", "lora_path": "a"}),
    "unload_lora_adapter": (UnloadAdapter, {"lora_name": "a"}),
}
OPENAI: dict[str, type] = {
    "chat": openai_chat.CompletionCreateParamsBase,
    "completions": openai_completions.CompletionCreateParamsBase,
    "embeddings": openai_embeddings.EmbeddingCreateParams,
}
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

# Fields that are honoured, and the test that shows how.
CHOOSING = "api/test_completions.py::test_every_way_to_choose_reaches_the_engine"
TOGETHER = "api/test_adapters_together.py::test_several_adapters_answer_together_and_the_answer_says_which"
GENERATING = {
    "adapters": TOGETHER,
    "model": "api/test_completions.py::test_an_adapter_answers_and_says_which_version_it_is",
    "n": "api/test_completions.py::test_every_prompt_gets_n_answers_side_by_side_with_seeds_of_their_own",
    "stream": "generation/test_streaming.py::test_usage_comes_in_a_chunk_of_its_own_where_it_is_asked_for",
    "stream_options": "generation/test_streaming.py::test_usage_comes_in_a_chunk_of_its_own_where_it_is_asked_for",
    "temperature": CHOOSING,
    "top_p": CHOOSING,
    "top_k": CHOOSING,
    "min_p": CHOOSING,
    "repetition_penalty": CHOOSING,
    "presence_penalty": CHOOSING,
    "frequency_penalty": CHOOSING,
    "logit_bias": CHOOSING,
    "seed": CHOOSING,
    "stop": CHOOSING,
    "ignore_eos": CHOOSING,
    "max_tokens": CHOOSING,
    "stop_token_ids": CHOOSING,
    "include_stop_str_in_output": CHOOSING,
    "min_tokens": CHOOSING,
    "skip_special_tokens": CHOOSING,
}
HOW: dict[str, dict[str, str]] = {
    "chat": GENERATING
    | {
        "messages": "api/test_chat.py::test_the_assistant_answers_what_the_template_writes",
        "max_completion_tokens": "api/test_chat.py::test_an_answer_takes_what_the_context_leaves_unless_it_is_told",
        "logprobs": "api/test_chat.py::test_logprobs_have_the_bytes_of_each_token",
        "top_logprobs": "api/test_chat.py::test_logprobs_have_the_bytes_of_each_token",
        "add_special_tokens": ("api/test_chat.py::test_a_chat_begins_as_a_text_where_special_tokens_are_to_be_added"),
        "tool_choice": "api/test_chat.py::test_what_cannot_be_done_in_a_chat_is_refused_by_its_field",
        "modalities": "api/test_chat.py::test_what_cannot_be_done_in_a_chat_is_refused_by_its_field",
        "chat_template_kwargs": "api/test_chat_fields.py::test_the_variables_of_a_request_reach_the_template",
        "documents": "api/test_chat_fields.py::test_documents_and_tools_are_written_where_the_template_writes_them",
        "tools": "api/test_chat_fields.py::test_documents_and_tools_are_written_where_the_template_writes_them",
        "continue_final_message": "api/test_chat_fields.py::test_the_last_message_is_continued_where_it_ends",
        "add_generation_prompt": "api/test_chat_fields.py::test_an_answer_need_not_be_begun",
    },
    "completions": GENERATING
    | {
        "prompt": "api/test_completions.py::test_lists_of_tokens_are_prompts",
        "add_special_tokens": ("api/test_completions.py::test_a_prompt_without_added_special_tokens_is_its_text_alone"),
        "best_of": "api/test_completions.py::test_what_cannot_be_done_is_refused_by_its_field",
        "echo": "api/test_completions.py::test_echo_puts_the_prompt_before_each_answer",
        "logprobs": "api/test_completions.py::test_logprobs_have_the_chosen_token_among_the_likeliest",
    },
    "embeddings": {
        "model": "api/test_embeddings.py::test_an_adapter_embeds_and_is_given_back",
        "adapters": "api/test_embeddings.py::test_adapters_embed_together_in_a_copy_that_counts_while_it_is_used",
        "input": "api/test_embeddings.py::test_texts_and_tokens_have_their_vectors_in_order",
        "encoding_format": "api/test_embeddings.py::test_base64_is_float32_little_endian",
        "dimensions": "api/test_embeddings.py::test_the_size_that_the_base_has_may_be_asked_for",
        "normalize": "api/test_embeddings.py::test_whether_vectors_have_length_1_may_be_asked_for",
        "use_activation": "api/test_embeddings.py::test_whether_vectors_have_length_1_may_be_asked_for",
    },
    "labels": {
        "model": "../embedding/test_classifier.py::test_a_text_has_the_label_of_the_model_that_is_named",
        "adapters": "../embedding/test_classifier.py::test_adapters_with_heads_for_as_many_labels_classify_together",
        "input": "../embedding/test_classifier.py::test_a_text_has_the_label_of_the_model_that_is_named",
    },
    "stream_options": {
        "include_usage": "generation/test_streaming.py::test_usage_comes_in_a_chunk_of_its_own_where_it_is_asked_for",
        "continuous_usage_stats": (
            "generation/test_streaming.py::test_usage_grows_from_chunk_to_chunk_where_that_is_asked_for"
        ),
    },
    "load_lora_adapter": {
        "lora_name": "api/test_clients.py::test_curl_brings_an_adapter_keeps_it_and_takes_it_away",
        "lora_path": "api/test_clients.py::test_curl_brings_an_adapter_keeps_it_and_takes_it_away",
        "load_inplace": "api/test_adapter_routes.py::test_a_name_that_is_loaded_is_400_unless_it_is_to_be_replaced",
    },
    "unload_lora_adapter": {"lora_name": "api/test_clients.py::test_curl_brings_an_adapter_keeps_it_and_takes_it_away"},
}
# Fields that change no answer, whoever takes them, with a value.
NOT_USED: dict[str, Any] = {
    "user": "me", "safety_identifier": "me", "prompt_cache_key": "mine", "metadata": {"a": "b"}, "store": False,
    "service_tier": "auto", "parallel_tool_calls": True, "spaces_between_special_tokens": False, "lora_int_id": 3,
}  # fmt: skip
# Values that no field of these has for nothing: each of them asks for something.
ASKING: list[Any] = [["something"], {"type": "something"}, "something", 0.125, -7, True, 7]


def is_supported(body: type[NamedFields], name: str) -> bool:
    field = body.model_fields.get(name)
    return field is not None and field.metadata != list(get_args(NotSupported)[1:])


def peers_fields(route: str) -> list[str]:
    """The fields that other servers take there, each once; OpenAI's are also those of the package that is here now."""
    names = {name for peer in PEERS.values() for name in peer.get(route, ())}
    return sorted(names | getattr(OPENAI.get(route), "__annotations__", {}).keys())


def wrong_fields(route: str, fields: dict[str, Any]) -> dict[str, str]:
    """{field: what is wrong with it} of a body with these fields."""
    body, needed = BODIES[route]
    try:
        body.model_validate(needed | fields)
    except ValidationError as error:
        return {str(problem["loc"][0]): problem["msg"] for problem in error.errors()}
    return {}


def names_in(test: str) -> str:
    """The text of a test: `folder/file.py::name`."""
    file, _, name = test.partition("::")
    tree = ast.parse((HERE.parent / file).read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return ast.unparse(found)


def test_every_field_that_is_taken_has_a_test_that_shows_how_or_is_not_used_by_anybody() -> None:
    for route, (body, _) in BODIES.items():
        supported = {name for name in body.model_fields if is_supported(body, name)}
        assert supported - NOT_USED.keys() == HOW[route].keys(), route
        for name, test in HOW[route].items():
            assert name in names_in(test), (route, name)


@pytest.mark.parametrize("route", BODIES)
def test_no_field_of_another_server_is_ignored(route: str) -> None:
    others = [name for name in peers_fields(route) if not is_supported(BODIES[route][0], name)]
    assert others
    for name in others:
        for value in ASKING:
            if name in OTHER_FIELDS and not OTHER_FIELDS[name].refused(value):
                assert value is True, name  # what the other server does without the field
                continue
            assert wrong_fields(route, {name: value}).keys() == {name}, (name, value)
        assert wrong_fields(route, {name: None}) == {}


@pytest.mark.parametrize("route", PATHS)
def test_what_changes_no_answer_is_taken(base: BasePack, route: str) -> None:
    engine = FakeEngine()
    client = Client(service(base, engine))
    needed = BODIES[route][1]
    taken = {name: value for name, value in NOT_USED.items() if name in BODIES[route][0].model_fields}
    for fields in ({}, taken, dict.fromkeys(taken)):
        assert client.post(PATHS[route], {**needed, "temperature": 0, **fields}).status_code == 200
    assert len({request.prompt for request in engine.requests}) == 1
    assert engine.requests[0].sampling == engine.requests[1].sampling == engine.requests[2].sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [("store", True), ("service_tier", "flex"), ("metadata", "x"), ("user", 3), ("prompt_cache_retention", "24h")],
)
def test_a_value_that_asks_for_something_is_refused(base: BasePack, name: str, value: Any) -> None:
    client = Client(service(base, FakeEngine()))
    assert refusal(client.post(PATHS["chat"], {**BODIES["chat"][1], name: value}))["param"] == name


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("lora_path", "plain", "name the adapter in model"),
        ("adapter_id", "plain", "name the adapter in model"),
        ("lora", [{"id": 0, "scale": 1}], "name the adapter in model"),
        ("max_new_tokens", 5, "use max_tokens"),
        ("repeat_penalty", 1.3, "use repetition_penalty"),
        ("prompt_logprobs", 0, "does not support it"),
        ("thinking_token_budget", 0, "does not support it"),
        ("json_schema", {}, "does not support it"),
        ("do_sample", False, "use temperature"),
        ("max_token", 5, "did you mean max_tokens?"),
        ("maxTokens", 5, "did you mean max_tokens?"),
        ("Temperature", 0, "did you mean temperature?"),
        ("qqq", False, "/openapi.json"),
        ("{0}", 1, "does not know it"),
    ],
)
def test_a_refusal_says_what_to_do_instead(base: BasePack, name: str, value: Any, told: str) -> None:
    engine = FakeEngine()
    client = Client(service(base, engine))
    for route, path in PATHS.items():
        error = refusal(client.post(path, {**BODIES[route][1], name: value}))
        assert error["param"] == name
        assert error["message"].startswith(f"{name}: this service does not ")
        assert told in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"length_penalty": 1.0, "typical_p": 1, "mirostat": 0, "n_predict": -1, "cache_prompt": True},
        {"skip_special_tokens": True, "min_tokens": 0, "priority": 0, "use_beam_search": False, "best_of": 1},
        {"response_format": {"type": "text"}, "suffix": "", "guided_json": {}, "bad_words": [], "lora_path": None},
    ],
)
def test_a_value_that_is_what_happens_anyway_is_taken(fields: dict[str, Any]) -> None:
    for route in PATHS:
        assert wrong_fields(route, fields) == {}


# Bodies like those that clients send by themselves.
CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "langchain": ("chat", {"messages": HELLO, "model": BASE, "stream": False, "temperature": 0.7, "n": 1}),
    "litellm": ("chat", {"model": BASE, "messages": HELLO, "max_tokens": 8, "stream": True, "user": "", "metadata": None,
                         "stream_options": {"include_usage": True}}),
    "open-webui": ("chat", {"stream": True, "model": BASE, "messages": HELLO, "stream_options": {"include_usage": True}}),
    "vercel ai": ("chat", {"model": BASE, "messages": HELLO, "temperature": 0, "max_tokens": 8, "tool_choice": None}),
    "autogen": ("chat", {"model": BASE, "messages": [{**HELLO[0], "name": "user"}], "stream": False, "temperature": 1}),
    "guidellm": ("chat", {"model": BASE, "messages": HELLO, "stream": True, "max_completion_tokens": 8, "ignore_eos": True,
                          "stop": None, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "vllm bench": ("completions", {"model": BASE, "prompt": "x", "temperature": 0, "repetition_penalty": 1.0,
                                   "max_tokens": 8, "logprobs": None, "stream": True, "ignore_eos": True,
                                   "stream_options": {"include_usage": True}}),
    "sglang bench": ("completions", {"model": BASE, "prompt": "x", "temperature": 0.0, "best_of": 1, "max_tokens": 8,
                                     "stream": True, "ignore_eos": True}),
    "curl": ("completions", {"model": BASE, "prompt": "x", "max_tokens": 7, "temperature": 0}),
}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_what_clients_send_by_themselves_is_taken(base: BasePack, client: str) -> None:
    route, body = CLIENTS[client]
    response = Client(service(base, FakeEngine())).post(PATHS[route], body)
    assert response.status_code == 200, response.text


KNOWN = {name for body, _ in BODIES.values() for name in body.model_fields} | OTHER_FIELDS.keys()
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    route=st.sampled_from(sorted(BODIES)),
    fields=st.dictionaries(st.text().filter(lambda name: name not in KNOWN), ANY_JSON, min_size=1, max_size=20),
)
def test_a_field_that_nobody_knows_is_refused_by_name_unless_it_is_null(route: str, fields: dict[str, Any]) -> None:
    told = {name for name, value in fields.items() if value is not None}
    refused = wrong_fields(route, fields)
    assert refused.keys() <= told
    assert len(refused) == min(len(told), 16)


def test_many_unknown_fields_take_no_time(base: BasePack) -> None:
    client = Client(service(base, FakeEngine()))
    body = {**BODIES["chat"][1], **{f"max_tokens_{number}": 1 for number in range(50_000)}}
    message = refusal(client.post(PATHS["chat"], body))["message"]
    assert len(message) < 1000


def documented_fields() -> dict[str, set[str]]:
    """The fields of each route in the tables of docs/serving.md; one without a column `of` is of chats."""
    text = (HERE.parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    routes = {"completions": "completions", "chats": "chat", "embeddings": "embeddings", "labels": "labels"}
    result: dict[str, set[str]] = {route: set() for route in routes.values()}
    for header, table in re.findall(r"^\| field \|(.*)\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            names, of = row.split("|")[1:3]
            for route in of.split(",") if header.startswith(" of ") else ["chats"]:
                result[routes[route.strip()]] |= set(re.findall(r"`(\w+)`", names))
    assert all(f"`{name}" in text for name in NOT_USED.keys() - {"lora_int_id"})
    return result


def test_the_documents_tell_every_field_that_is_taken_and_no_other() -> None:
    for route, names in documented_fields().items():
        body = BODIES[route][0]
        assert names == {name for name in body.model_fields if is_supported(body, name)} - NOT_USED.keys(), route
