"""What a chat's fields say reaches the base's template, or is refused by name; transformers is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from transformers import PreTrainedTokenizerFast

from tests.serve.http.fake_engine import FakeEngine, words
from tests.serve.http.services import BASE, Client, refusal, service
from tests.tiny.tokenizer import byte_tokenizer

# A template of the usual shapes in small: it thinks where it is let, calls tools, and takes text or parts.
RICH = """\
{%- if tools %}{{- 'T' + (tools | tojson) }}{%- endif %}
{%- for document in documents or [] %}{{- 'D' + document.text }}{%- endfor %}
{%- for m in messages %}
    {{- '[' + m.role + (':' + m.name if m.name else '') + (m.tool_call_id or '') + ']' }}
    {%- if m.reasoning_content %}{{- '(' + m.reasoning_content + ')' }}{%- endif %}
    {%- if m.content is string %}{{- m.content | trim }}
    {%- else %}{%- for part in m.content or [] %}{{- '+' + part.text }}{%- endfor %}{%- endif %}
    {%- for call in m.tool_calls or [] %}{{- '<' + call.function.name + call.function.arguments + '>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]' }}{%- if enable_thinking is defined and not enable_thinking %}{{- '()' }}{%- endif %}
{%- endif %}
"""
# It takes a content for granted, and knows three roles.
STRICT = (
    "{%- for m in messages %}{%- if m.role in ('system', 'user', 'assistant') %}"
    "{{- m.role + ': ' + m.content + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
)
HI = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"name": "f"}

Ask = Callable[..., Any]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(words("yes"))


@pytest.fixture
def ask(base: BasePack, engine: FakeEngine) -> Ask:
    """The prompt that a chat becomes under a template, or the refusal."""
    state = service(base, engine, limits={"max_prompt_tokens": 4096})

    def asked(template: str, **fields: Any) -> Any:
        state.template = ChatTemplate(template, "the template", {})
        response = Client(state).post("/v1/chat/completions", {"model": BASE, "max_tokens": 1, **fields})
        if response.status_code != 200:
            return response
        return byte_tokenizer().decode(list(engine.requests[-1].prompt), skip_special_tokens=False)

    return asked


def oracle(template: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), chat_template=template)
    written = tokenizer.apply_chat_template(messages, tokenize=False, **fields)
    assert isinstance(written, str)
    return written


HEARD: dict[str, list[dict[str, Any]]] = {
    "a-name": [{**HI, "name": "ann"}],
    "null-content": [HI, {"role": "assistant", "content": None}, HI],
    "no-content": [HI, {"role": "assistant"}, HI],
    "a-call": [
        HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ],
    "a-thought": [HI, {"role": "assistant", "reasoning_content": "hm", "content": "Yo"}, HI],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "nulls": [HI, {"role": "assistant", "content": "Yo", "tool_calls": None, "name": None, "refusal": None}, HI],
    "no-calls": [HI, {"role": "assistant", "content": "Yo", "function_call": None}, HI],
}


@pytest.mark.parametrize("messages", HEARD.values(), ids=list(HEARD))
def test_a_message_reaches_the_template_with_all_that_it_says(ask: Ask, messages: list[dict[str, Any]]) -> None:
    assert ask(RICH, messages=messages) == oracle(RICH, messages, add_generation_prompt=True)


@pytest.mark.parametrize("silent", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_a_message_without_content_says_nothing_to_a_template_that_wants_some(ask: Ask, silent: Any) -> None:
    assert ask(STRICT, messages=[HI, silent, HI]) == "user: Hi\nassistant: \nuser: Hi\nassistant:"
    assert ask(STRICT, messages=[{**HI, "name": "alice"}]) == "user: Hi\nassistant:"


def test_the_variables_of_a_request_reach_the_template(ask: Ask) -> None:
    variables = {"enable_thinking": False}
    expected = oracle(RICH, [HI], add_generation_prompt=True, **variables)
    assert ask(RICH, messages=[HI], chat_template_kwargs=variables) == expected == "[user]Hi[assistant]()"
    assert ask(RICH, messages=[HI], chat_template_kwargs=None) == "[user]Hi[assistant]"


def test_documents_and_tools_are_written_where_the_template_writes_them(ask: Ask) -> None:
    fields: dict[str, Any] = {"tools": [TOOL], "documents": [{"title": "a", "text": "b"}]}
    expected = oracle(RICH, [HI], add_generation_prompt=True, **fields)
    assert ask(RICH, messages=[HI], tool_choice="none", **fields) == expected
    for name in fields:
        error = refusal(ask(STRICT, messages=[HI], tool_choice="none", **{name: fields[name]}))
        assert error["param"] == name
        assert "leave them out" in error["message"]


def test_tools_that_might_be_called_are_refused_with_what_can_be_had(ask: Ask) -> None:
    for choice in ({}, {"tool_choice": "auto"}):
        error = refusal(ask(RICH, messages=[HI], tools=[TOOL], **choice))
        assert error["param"] == "tools"
        assert "set tool_choice to none" in error["message"]


@pytest.mark.parametrize("last", ["so far", " so far  ", "so\n\n"])
@pytest.mark.parametrize("template", [RICH, STRICT], ids=["trims", "keeps"])
def test_the_last_message_is_continued_where_it_ends(ask: Ask, template: str, last: str) -> None:
    messages = [HI, {"role": "assistant", "content": last}]
    expected = oracle(template, messages, continue_final_message=True)
    assert ask(template, messages=messages, continue_final_message=True) == expected
    assert ask(template, messages=messages, continue_final_message=True, add_generation_prompt=False) == expected
    error = refusal(ask(template, messages=messages, continue_final_message=True, add_generation_prompt=True))
    assert error["param"] == "continue_final_message"


def test_an_answer_need_not_be_begun(ask: Ask) -> None:
    assert ask(RICH, messages=[HI], add_generation_prompt=False) == "[user]Hi"


def test_developer_is_system_where_the_template_does_not_know_it(ask: Ask) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, HI]
    assert ask(STRICT, messages=messages) == "system: Be brief.\nuser: Hi\nassistant:"
    knows = (
        "{% for m in messages %}{{ m.role }}{{ m.content if m.role != 'developer' else '!' ~ m.content }}{% endfor %}"
    )
    assert ask(knows, messages=messages) == "developer!Be brief.userHi"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([HI, {"role": "tool", "content": "rain"}], "messages.1"),
        ([{"role": "critic", "content": "?"}, HI], "messages.0"),
        ([HI, {"role": "assistant", "content": "", "tool_calls": [CALL]}, HI], "messages.1.tool_calls"),
        ([HI, {"role": "assistant", "content": "so", "tool_calls": [CALL]}, HI], "messages.1.tool_calls"),
        ([{"role": "system", "content": None}, HI], "messages.0.content"),
        ([HI, {"role": "tool"}], "messages.1.content"),
        ([HI, {"role": "assistant", "tool_calls": [7]}], "messages.1.tool_calls"),
        ([HI, {"role": "assistant", "content": "a", "function_call": {"name": "f"}}], "messages.1.function_call"),
        ([{**HI, "name": 7}], "messages.0.name"),
        ([{**HI, "mood": {"deep": ["\ud800"]}}], "messages.0"),
    ],
)
def test_what_the_template_would_not_say_is_refused_by_its_place(ask: Ask, messages: Any, param: str) -> None:
    error = refusal(ask(STRICT, messages=messages))
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
        ({"chat_template_kwargs": 7}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs"),
        ({"documents": ["text"]}, "documents"),
        ({"tools": {"name": "f"}}, "tools"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_field_that_is_none_of_these_is_refused_by_name(ask: Ask, fields: Any, param: str) -> None:
    error = refusal(ask(RICH, messages=[HI], **fields))
    assert error["param"] == param


def test_json_is_refused_with_what_is_supported(ask: Ask) -> None:
    error = refusal(ask(RICH, messages=[HI], response_format={"type": "json_object"}))
    assert "the type text is" in error["message"]


def test_variables_that_break_the_template_are_the_requests_error(ask: Ask) -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    template = "{{ messages[0].content }}{% if x is defined %}{{ x | tojson }}{{ range(3) | list }}{% endif %}"
    assert refusal(ask(template, messages=[HI], chat_template_kwargs={"x": deep, "range": 1}))["param"] is None


# Of the shape of Qwen2.5's: it writes the arguments of a call as JSON.
CALLING = (
    "{%- for m in messages %}{{- '[' + m.role + ']' + (m.content or '') }}{%- for call in m.tool_calls or [] %}"
    "{{- call.function.name }}{{- call.function.arguments | tojson }}{%- endfor %}{%- endfor %}"
)


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}, '{"city":"Oslo"}'])
def test_the_arguments_of_a_call_are_quoted_once(ask: Ask, arguments: Any) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    messages = [HI, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "rain"}]
    assert ask(CALLING, messages=messages) == '[user]Hi[assistant]f{"city": "Oslo"}[tool]rain'


# It looks at the first message, whatever that is.
FIRST = "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}" + STRICT


@pytest.mark.parametrize("template", [STRICT, FIRST], ids=["any", "looks-at-the-first"])
@pytest.mark.parametrize("role", ["User", "human", "function"])
def test_a_message_whose_role_the_template_does_not_write_is_refused_also_alone(
    ask: Ask, template: str, role: str
) -> None:
    silent = {"role": role, "content": "What now?"}
    for messages, place in (([silent], 0), ([HI, silent], 1), ([silent, HI], 0)):
        error = refusal(ask(template, messages=messages))
        assert error["param"] == f"messages.{place}"
        assert repr(role) in error["message"]


def test_a_message_that_a_template_cannot_do_without_is_heard(ask: Ask) -> None:
    assert ask(FIRST, messages=[HI]) == "user: Hi\nassistant:"
    assert ask(FIRST, messages=[{"role": "system", "content": "Hi"}]).startswith("Hi")
    assert ask(FIRST, messages=[{"role": "user", "content": ""}]) == "user: \nassistant:"


@pytest.mark.parametrize("value", [True, "on", 1, {"type": "enabled"}])
def test_a_variable_that_the_template_does_not_know_is_refused_by_name(ask: Ask, value: Any) -> None:
    error = refusal(ask(STRICT, messages=[HI], chat_template_kwargs={"enable_thinking": value}))
    assert error["param"] == "chat_template_kwargs.enable_thinking"
    assert "leave it out" in error["message"]


def test_a_variable_that_asks_for_nothing_is_taken_unless_it_is_misspelled(ask: Ask) -> None:
    for value in (False, None, ""):
        assert ask(STRICT, messages=[HI], chat_template_kwargs={"enable_thinking": value}) == "user: Hi\nassistant:"
        error = refusal(ask(RICH, messages=[HI], chat_template_kwargs={"enable_thinkng": value}))
        assert "did you mean enable_thinking?" in error["message"]
    many = {f"x{number}": None for number in range(1000)}
    assert "no variable 'x64'" in refusal(ask(STRICT, messages=[HI], chat_template_kwargs=many))["message"]


@pytest.mark.parametrize("field", ["enable_thinking", "thinking", "think", "reasoning"])
@pytest.mark.parametrize("value", [False, True, {"type": "disabled"}])
def test_not_to_think_is_something_that_is_asked_for(ask: Ask, field: str, value: Any) -> None:
    error = refusal(ask(RICH, messages=[HI], **{field: value}))
    assert error["param"] == field
    assert "chat_template_kwargs" in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("prefix", True, "continue_final_message"),
        ("partial", True, "continue_final_message"),
        ("images", ["aGk="], "reads text"),
        ("attachments", [{"id": 1}], "reads text"),
        ("tools", [TOOL], "a field of the request"),
    ],
)
def test_a_field_of_a_message_that_asks_for_more_is_refused_by_name(
    ask: Ask, field: str, value: Any, instead: str
) -> None:
    messages = [HI, {"role": "assistant", "content": "Yo"}]
    error = refusal(ask(STRICT, messages=[messages[0], {**messages[1], field: value}]))
    assert error["param"] == f"messages.1.{field}"
    assert instead in error["message"]
    nothings: list[Any] = [None, False, []]
    for nothing in nothings:
        assert "Yo" in ask(STRICT, messages=[messages[0], {**messages[1], field: nothing}])
    reads = STRICT.replace("m.content", f"m.content + (m.{field} | string if m.{field} else '')")
    assert str(value) in ask(reads, messages=[messages[0], {**messages[1], field: value}])


def test_what_the_openai_package_says_of_an_answer_may_be_sent_back(ask: Ask) -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": "Yo", "refusal": None, "annotations": [], "audio": None}
    more = {"function_call": None, "tool_calls": None, "provider_specific_fields": {"refusal": None}}
    expected = "user: Hi\nassistant: Yo\nuser: Hi\nassistant:"
    assert ask(STRICT, messages=[HI, {**answer, **more}, HI]) == expected


def test_likeliest_tokens_may_be_none_without_log_probabilities(ask: Ask) -> None:
    for fields in ({"top_logprobs": 0}, {"top_logprobs": 0, "logprobs": False}, {"top_logprobs": None}):
        assert ask(STRICT, messages=[HI], **fields)
    assert refusal(ask(STRICT, messages=[HI], top_logprobs=1))["param"] == "top_logprobs"
