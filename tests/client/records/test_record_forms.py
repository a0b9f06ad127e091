"""What a record says: the forms that people have, fields by other names, and fields that change what is learned."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fedlora.config.run import DataConfig, FieldNames, RunConfig, changed
from fedlora.data.examples import Chat, ChatMessage, Completion, Labelled, TextRecord
from fedlora.errors import ConfigError, DataError
from fedlora_client.records.jsonl import parse_example
from fedlora_client.records.record_forms import parse_record
from hypothesis import given
from hypothesis import strategies as st

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:\n"
)
HELLO = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]
CHAT = Chat((ChatMessage("user", "Hello"), ChatMessage("assistant", "Good day.")))


@pytest.mark.parametrize(("more", "prompt"), [("2, 2", WITH_INPUT), ("", WITHOUT_INPUT), (None, WITHOUT_INPUT)])
def test_an_instruction_is_learned_after_alpacas_prompt(more: str | None, prompt: str) -> None:
    record = {"instruction": "Add.", "input": more, "output": "4"}
    assert parse_record(record).example == Completion(prompt, "4")
    del record["input"]
    assert parse_record(record).example == Completion(WITHOUT_INPUT, "4")


@pytest.mark.parametrize("speakers", [("human", "gpt"), ("user", "assistant"), ("Human", "chatgpt"), ("user", "model")])
@pytest.mark.parametrize("field", ["conversations", "messages"])
def test_a_conversation_of_sharegpt_is_a_chat(field: str, speakers: tuple[str, str]) -> None:
    said = [{"from": who, "value": turn["value"]} for who, turn in zip(speakers, HELLO, strict=True)]
    assert parse_record({field: said}).example == CHAT
    system = [{"from": "system", "value": "Be short."}, *said]
    assert parse_record({"conversations": system}).example == Chat((ChatMessage("system", "Be short."), *CHAT.messages))


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_what_sharegpt_calls_is_a_call_of_the_assistant(is_text: bool, several: bool) -> None:
    """As LLaMA-Factory has it: turns function_call and observation, and tools without their type."""
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    value: Any = [call, call] if several else call
    said = [HELLO[0], {"from": "function_call", "value": json.dumps(value) if is_text else value}, {"from": "observation",
            "value": "rain"}, HELLO[1]]  # fmt: skip
    tools = [{"name": "weather", "parameters": {}}]
    record = {"conversations": said, "tools": json.dumps(tools) if is_text else tools}
    example = parse_record(record).example
    assert isinstance(example, Chat)
    calls = [{"type": "function", "function": call}] * (1 + several)
    assert example.messages[1:3] == (
        ChatMessage("assistant", None, {"tool_calls": calls}), ChatMessage("tool", "rain")
    )  # fmt: skip
    assert example.messages[1].fields == {"tool_calls": calls}
    assert example.tools == ({"type": "function", "function": tools[0]},)


def test_a_call_of_sharegpt_without_arguments_has_none() -> None:
    example = parse_record({"conversations": [{"from": "function_call", "value": '{"name": "now"}'}]}).example
    assert isinstance(example, Chat)
    assert example.messages[0].fields["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_tools_of_messages_are_the_templates_as_they_came() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    for field in ("messages", "conversations"):
        example = parse_record({field: messages, "tools": [{"name": "weather"}]}).example
        assert isinstance(example, Chat)
        assert example.tools == ({"name": "weather"},)


def test_conversations_may_hold_messages() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    assert parse_record({"conversations": messages}).example == CHAT


def test_a_prompt_and_a_completion_that_are_messages_are_one_chat() -> None:
    record = {
        "prompt": [{"role": "user", "content": "Hello"}],
        "completion": [{"role": "assistant", "content": "Good day."}],
    }
    assert parse_record(record).example == CHAT


def test_answers_in_a_prompt_of_messages_are_read_and_not_learned() -> None:
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    record = {"prompt": prompt, "completion": [{"role": "assistant", "content": "d"}], "system": "Be short."}
    chat = parse_record(record).example
    assert isinstance(chat, Chat)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.is_learned for m in chat.messages if m.role == "assistant"] == [False, True]


def test_what_stands_beside_a_chat_goes_to_its_template() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    for written in (tools, json.dumps(tools)):
        chat = parse_record({"conversations": HELLO, "tools": written}).example
        assert isinstance(chat, Chat)
        assert chat.tools == tuple(tools)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "speaker": ({"conversations": [{"from": "gtp", "value": "a"}]}, r"conversations 1: from is 'gtp'; .*did you mean gpt"),
    "near a call": ({"conversations": [{"from": "function_cal", "value": "a"}]}, "did you mean function_call"),
    "no call": ({"conversations": [{"from": "function_call", "value": "w()"}]}, "value must be JSON with the name"),
    "no name": ({"conversations": [{"from": "function_call", "value": "{}"}]}, "value must be JSON with the name"),
    "no calls": ({"conversations": [{"from": "function_call", "value": "[]"}]}, "value must be JSON with the name"),
    "deep call": ({"conversations": [{"from": "function_call", "value": "[" * 99999}]}, "value must be JSON with the name"),
    "bad tools": ({"conversations": HELLO, "tools": "w()"}, "tools is a string that is not JSON"),
    "preferences alone": ({"instruction": "a", "chosen": "b", "rejected": "c"}, "chosen: preferences are not learned"),
    "no value": ({"conversations": [{"from": "gpt"}]}, "conversations 1: value is missing"),
    "list": ({"conversations": "Hello"}, "messages must be a list"),
    "preferences": ({"prompt": "a", "completion": "b", "rejected": "c"}, "rejected is not supported: preferences"),
    "a bad completion": ({"prompt": "a", "completion": "b", "label": False}, "only good ones are learned"),
    "weight": ({"text": "a", "weight": 0.5}, "weight must be 0 .left out. or 1, got 0.5"),
    "weight word": ({"text": "a", "weight": "heavy"}, "weight must be 0 or 1, got the string 'heavy'"),
    "train": ({"text": "a", "train": "perhaps"}, "train must be true or false"),
    "system": ({"prompt": "a", "completion": "b", "system": "Be short."}, "system belongs to a chat"),
    "alpaca system": ({"instruction": "a", "output": "b", "system": "Be short."}, "system belongs to a chat"),
    "history": ({"instruction": "a", "output": "b", "history": [["a", "b"]]}, "history is not supported"),
    "tools": ({"text": "a", "tools": [{"name": "f"}]}, "tools belongs to a chat"),
    "images": ({"messages": [], "images": ["a.png"]}, "images is not supported: a base reads text"),
    "suffix": ({"prompt": "a", "completion": "b", "suffix": "c"}, "suffix is not supported"),
    "pair": ({"text": "a", "text_pair": "b"}, "text_pair is not supported without a label"),
    "output": ({"instruction": "a", "output": ""}, "output is empty"),
    "two forms": ({"instruction": "a", "output": "b", "text": "c"}, "only one of .*, got text and instruction/output"),
    "typing error": ({"promt": "a", "completion": "b"}, r"got promt, completion; .*promt: did you mean prompt\?"),
    "capitals": ({"Text": "a"}, r"Text: did you mean text\?"),
}  # fmt: skip


@pytest.mark.parametrize(("record", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_would_change_what_is_learned_is_refused_by_name(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_record(record)


@pytest.mark.parametrize(
    "word", [{"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"train": "False"}]
)
def test_a_record_that_says_that_it_is_not_to_be_learned_is_left_out(word: dict[str, Any]) -> None:
    assert parse_record({"text": "a", **word}).example is None
    assert parse_example(json.dumps({"text": "a", **word})) is None


def test_fields_that_say_nothing_are_as_none() -> None:
    empty = {"weight": 1, "train": True, "system": "", "tools": [], "images": [], "history": [], "text_pair": None}
    assert parse_record({"text": "a", **empty}).example == TextRecord("a")


def test_fields_that_are_not_learned_are_named() -> None:
    parsed = parse_record({"id": 7, "prompt": "a", "completion": "b", "source": "x", "messages": None, "weight": 1})
    assert (parsed.example, parsed.ignored) == (Completion("a", "b"), ("id", "source"))


def test_fields_go_by_the_names_that_the_configuration_gives_them() -> None:
    names = FieldNames(prompt="question", completion="answer")
    parsed = parse_record({"question": "2 + 2", "answer": "4", "prompt": "not this one", "topic": "sums"}, names)
    assert (parsed.example, parsed.ignored) == (Completion("2 + 2", "4"), ("prompt", "topic"))
    dolly = FieldNames(input="context", output="response")
    record = {"instruction": "Add.", "context": "2, 2", "response": "4", "category": "sums"}
    assert parse_record(record, dolly).example == Completion(WITH_INPUT, "4")
    assert parse_record({"sentence": "fine", "y": 1}, FieldNames(text="sentence", label="y")).example == Labelled(
        "fine", 1
    )
    assert parse_record({"dialog": HELLO}, FieldNames(messages="dialog")).example == CHAT


def test_a_named_field_chooses_the_form_where_a_record_has_several() -> None:
    record = {"instruction": "Add.", "input": "", "output": "4", "text": "All of it"}
    assert parse_record(record, FieldNames(text="text")).example == TextRecord("All of it")
    assert parse_record(record, FieldNames(output="output")).example == Completion(WITHOUT_INPUT, "4")


def test_a_named_field_that_is_missing_is_told_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"question \(data\.fields\.prompt\) is missing; .*did you mean questoin\?"):
        parse_record({"questoin": "a", "answer": "b"}, FieldNames(prompt="question", completion="answer"))
    with pytest.raises(DataError, match=r"question \(data\.fields\.prompt\) is null"):
        parse_record({"question": None, "answer": "b"}, FieldNames(prompt="question", completion="answer"))


def test_names_of_fields_travel_in_flowers_flat_configuration() -> None:
    config = changed(RunConfig(), ["data.fields.prompt=question", "data.fields.completion=answer"])
    assert config.data.fields == FieldNames(prompt="question", completion="answer")
    assert config.flat()["data.fields.prompt"] == "question"
    assert RunConfig.from_flat(config.flat(), "here") == config
    assert repr(DataConfig()) == "DataConfig(name='stdlib', path='', max_bytes=0)", "devices know what they saved by it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.fields.prompt=a", "data.fields.text=b"], "names the fields of one form"),
        (["data.fields.prompt=a", "data.fields.completion=a"], "must name different fields"),
        (["data.fields.promt=a"], r"unknown key data\.fields\.promt; did you mean data\.fields\.prompt\?"),
        (["data.fields.prompt=3"], r"data\.fields\.prompt must be of type str"),
    ],
)
def test_names_of_fields_are_checked(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(RunConfig(), changes)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["text", "label", "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "weight",
     "train", "system", "tools", "images", "chosen", "history", "text_pair", "id"]
)  # fmt: skip


@given(st.dictionaries(NAMES, VALUES | st.just("a text"), max_size=6))
def test_any_record_gives_an_example_or_a_data_error(record: dict[str, Any]) -> None:
    try:
        parse_record(record)
    except DataError:
        return
