"""The arguments of a call stand once in the text, however they came and whichever form the template takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import Chat, ChatMessage
from fedlora.errors import PackError
from transformers import PreTrainedTokenizerFast

from tests.tiny.tokenizer import byte_tokenizer

ARGUMENTS = {"city": "Ålesund", "days": {"from": 1, "to": [2, 3]}}
AS_JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
COMPACT = json.dumps(ARGUMENTS, separators=(",", ":"))
ITEMS = "{% for key, value in a.items() %}<{{ key }}>{{ value | tojson }}{% endfor %}"
IN_ITEMS = '<city>"Ålesund"<days>{"from": 1, "to": [2, 3]}'
# {kind: what writes the arguments `a`, and what of them is in the text}
WRITES = {
    "as JSON": ("{{ a | tojson }}", AS_JSON),
    "as JSON, where it is no string": ("{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}", AS_JSON),
    "one by one": (ITEMS, IN_ITEMS),
    "one by one, and a string in braces": (
        "{% if a is mapping %}" + ITEMS + "{% else %}{{ '{' + a + '}' }}{% endif %}",
        IN_ITEMS,
    ),
    "put into a text": ("{{ '```json\n' + a + '\n```' }}", f"```json\n{AS_JSON}\n```"),
    "as they are": ("{{ a }}", AS_JSON),
    "a string alone": ("{% if a is string %}{{ a }}{% endif %}", AS_JSON),
}


def template_of(writes: str) -> ChatTemplate:
    return ChatTemplate(source_of(writes), "t.jinja", {})


def source_of(writes: str) -> str:
    return (
        "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
        "{% set a = call.function.arguments %}{{ '(' + call.function.name + ':' }}"
        + writes
        + "{{ ')' }}{% endfor %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )


def called(*arguments: object) -> list[ChatMessage]:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": one}} for one in arguments]
    return [
        ChatMessage("user", "Rain?"),
        ChatMessage("assistant", None, {"tool_calls": calls}),
        ChatMessage("tool", "yes", {"tool_call_id": "c1"}),
    ]


@pytest.mark.parametrize(("writes", "expected"), WRITES.values(), ids=list(WRITES))
def test_an_object_and_its_json_are_written_alike(writes: str, expected: str) -> None:
    for given in (ARGUMENTS, AS_JSON):
        text = template_of(writes).text(called(given), "here")
        assert text == f"[user]Rain?\n[assistant](f:{expected})\n[tool]yes\n"
    assert "{'" not in template_of(writes).text(called(ARGUMENTS, AS_JSON), "here")  # of Python


@pytest.mark.parametrize("kind", ["as JSON", "as JSON, where it is no string", "one by one"])
def test_templates_that_take_objects_write_what_transformers_writes_of_them(kind: str) -> None:
    writes = WRITES[kind][0]
    oracle = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), chat_template=source_of(writes))
    expected = oracle.apply_chat_template([message.given() for message in called(ARGUMENTS)], tokenize=False)
    for given in (ARGUMENTS, AS_JSON, COMPACT):
        assert template_of(writes).text(called(given), "here") == expected


@pytest.mark.parametrize(("writes", "expected"), WRITES.values(), ids=list(WRITES))
def test_a_call_is_learned_as_it_is_written_when_it_is_served(writes: str, expected: str) -> None:
    for given in (ARGUMENTS, AS_JSON):
        rendered = template_of(writes).rendered(Chat((*called(given), ChatMessage("assistant", "It rains."))), "here")
        learned = [rendered.text[begin:end] for begin, end in rendered.spans]
        assert learned == [f"(f:{expected})\n", "It rains.\n"]


@pytest.mark.parametrize("nothing", ["", None, {}, "{}"])
def test_a_call_without_arguments_has_an_empty_object(nothing: object) -> None:
    assert "(f:{})" in template_of("{{ a | tojson }}").text(called(nothing), "here")
    assert "(f:)" in template_of(ITEMS).text(called(nothing), "here")


@pytest.mark.parametrize("given", ["{bad", "[1]", "5", "[" * 100_000, 5, [1]])
def test_what_is_no_object_is_handed_on_as_it_came(given: Any) -> None:
    assert template_of("{{ a | tojson }}").text(called(given), "here").count(json.dumps(given)) == 1


def test_a_template_that_takes_neither_says_so() -> None:
    with pytest.raises(PackError, match="cannot write the messages"):
        template_of("{{ a.nothing.nothing }}").text(called(ARGUMENTS), "here")
