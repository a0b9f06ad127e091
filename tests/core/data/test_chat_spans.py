"""Answers are found in the final text of a chat, whatever its template does to earlier messages."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import Chat, ChatMessage
from fedlora.data.tool_arguments import with_objects
from fedlora.errors import DataError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.core.data.chat_families import FAMILIES, MISTRAL, PHI3, QWEN3, TOKENS
from tests.tiny.tokenizer import byte_tokenizer


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, "t.jinja", TOKENS)


def written_by_transformers(source: str, messages: Any, **fields: Any) -> str:
    oracle = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), chat_template=source, **TOKENS)
    # The arguments of a call are an object, as transformers documents it.
    given = [message.given() for message in with_objects(messages)]
    text = oracle.apply_chat_template(given, tokenize=False, **fields)
    assert isinstance(text, str)
    return text


def learned(source: str, example: Chat) -> list[str]:
    rendered = template_of(source).rendered(example, "here")
    tools = None if example.tools is None else list(example.tools)
    assert rendered.text == written_by_transformers(source, example.messages, tools=tools)
    assert rendered.not_found == 0
    return [rendered.text[begin:end] for begin, end in rendered.spans]


def turns(*said: str, system: str | None = None, **fields: Any) -> Chat:
    messages = [ChatMessage(("user", "assistant")[number % 2], content) for number, content in enumerate(said)]
    return Chat((*([] if system is None else [ChatMessage("system", system)]), *messages), **fields)


# What people write, and pieces of what templates write: an answer that looks like markup is still one answer.
PIECES = st.sampled_from(
    ["a", "Yo.", " ", "\n", "é\u2028", "<|im_end|>", "\n<|user|>\n", "</s>", "[/INST]", "assistant", "<", "|>", "{{ x }}",
     "<end_of_turn>", "\U000f0000"]
)  # fmt: skip
WORDS = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(str.strip)
SAID = st.integers(1, 3).flatmap(lambda pairs: st.lists(WORDS, min_size=2 * pairs, max_size=2 * pairs))


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=25)
@given(said=SAID, system=st.none() | WORDS, more=st.booleans())
def test_every_answer_of_every_family_is_learned_with_its_end(
    name: str, said: list[str], system: str | None, more: bool
) -> None:
    family = FAMILIES[name]
    if not family.takes_system:
        system = None
    last = len(said) - 1 if not more else -1
    answers = [family.said(content, number == last) for number, content in enumerate(said) if number % 2]
    assert learned(family.source, turns(*said, *(["So?"] if more else []), system=system)) == answers


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_of_weight_0_is_read_and_not_learned(name: str) -> None:
    family = FAMILIES[name]
    messages = list(turns("q", "wrong", "q2", "right").messages)
    messages[1] = ChatMessage("assistant", "wrong", is_learned=False)
    assert learned(family.source, Chat(tuple(messages))) == [family.said("right", True)]
    messages[1], messages[3] = ChatMessage("assistant", "right"), ChatMessage("assistant", "wrong", is_learned=False)
    assert learned(family.source, Chat(tuple(messages))) == [family.said("right", False)]


MARKED = (
    "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}"
    "{% generation %}{{ '(' + m.reasoning_content + ')' }}{% endgeneration %}{{ '|' }}{% endif %}"
    "{% generation %}{{ m.content + '</s>' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_marks_of_a_message_of_weight_0_are_left_out_whatever_it_says() -> None:
    messages = (
        ChatMessage("user", "q"),
        ChatMessage("assistant", "a", {"reasoning_content": "hm"}),
        ChatMessage("user", "q"),
        ChatMessage("assistant", "a", {"reasoning_content": "hm"}, is_learned=False),
        ChatMessage("assistant", "b"),
    )
    assert learned(MARKED, Chat(messages)) == ["(hm)", "a</s>", "b</s>"]


def test_thoughts_are_learned_where_the_template_writes_them() -> None:
    thinking = {"reasoning_content": "hm"}
    messages = (
        ChatMessage("user", "q"),
        ChatMessage("assistant", "a", thinking),
        ChatMessage("user", "q2"),
        ChatMessage("assistant", "b", thinking),
    )
    # Of the first one the template knows the thought and leaves it out: there is nothing to refuse.
    assert learned(QWEN3, Chat(messages)) == ["a<|im_end|>\n", "<think>\nhm\n</think>\n\nb<|im_end|>\n"]
    spelled = turns("q", "<think>\nhm\n</think>\n\na", "q2", "<think>\nhm\n</think>\n\nb")
    assert learned(QWEN3, spelled) == ["a<|im_end|>\n", "<think>\nhm\n</think>\n\nb<|im_end|>\n"]


@pytest.mark.parametrize("content", [None, "", "Let me see."])
@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, {"n": 3}, {}, '{"city": "Oslo"}'])
def test_a_call_is_learned_with_its_end(content: str | None, arguments: object) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = (
        ChatMessage("user", "Rain?"),
        ChatMessage("assistant", content, {"tool_calls": [call]}),
        ChatMessage("tool", "yes", {"tool_call_id": "c1"}),
        ChatMessage("assistant", "It rains."),
    )
    called = learned(QWEN3, Chat(messages))
    assert len(called) == 2
    assert called[0].startswith((content or "") + "<tool_call>weather")
    assert called[0].endswith("</tool_call><|im_end|>\n")
    assert called[1] == "<think>\n\n</think>\n\nIt rains.<|im_end|>\n"


def test_a_call_is_learned_under_a_template_that_writes_the_end_once() -> None:
    source = PHI3.replace("+ m.content", "+ (m.content or '') + (m.tool_calls | tojson if m.tool_calls else '')")
    call = {"function": {"name": "f", "arguments": {"a": "b"}}}
    messages = (
        ChatMessage("user", "q"),
        ChatMessage("assistant", None, {"tool_calls": [call]}),
        ChatMessage("tool", "r"),
    )
    chat = Chat((*messages, ChatMessage("assistant", "Done.")))
    assert learned(source, chat) == [
        '[{"function": {"name": "f", "arguments": {"a": "b"}}}]<|end|>\n',
        "Done.<|end|>\n</s>",
    ]


def test_tools_that_move_with_the_last_question_do_not_hide_an_answer() -> None:
    example = turns("q", "a", "q2", "b", system="Be kind.", tools=({"name": "f"},))
    assert learned(MISTRAL, example) == [" a</s>", " b</s>"]


def test_answers_that_cannot_be_told_from_the_rest_are_counted() -> None:
    shouting = (  # of answers before the last one a summary is left
        "{% for m in messages %}{{ '<' + m.role + '>' }}"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content[0] | upper }}{% else %}{{ m.content }}{% endif %}"
        "{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rendered = template_of(shouting).rendered(turns("q", "first", "q2", "second"), "here")
    assert rendered.not_found == 1
    assert [rendered.text[begin:end] for begin, end in rendered.spans] == ["second<end>"]


def test_a_chat_of_which_no_answer_can_be_told_from_the_rest_is_refused() -> None:
    backwards = "{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"^here: t\.jinja writes the messages .* no \{% generation %\} marks.*give prompt"
    ):
        template_of(backwards).rendered(turns("q", "a"), "here")


def test_parts_go_to_a_template_that_goes_through_them_and_are_lines_to_another() -> None:
    parts = [{"type": "text", "text": " a"}, {"type": "text", "text": "b "}]
    example = Chat((ChatMessage("user", parts), ChatMessage("assistant", parts), ChatMessage("user", "so?")))
    through = (
        "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ '+' + part.text }}{% endfor %}{% endif %}{{ '<end>' }}{% endfor %}"
    )
    assert learned(through + "{% if add_generation_prompt %}<assistant>{% endif %}", example) == ["+ a+b <end>"]
    rendered = template_of(PHI3).rendered(example, "here")
    assert re.findall(r"<\|user\|>\n(.*?)<\|end\|>", rendered.text, re.DOTALL) == [" a\nb ", "so?"]
    assert [rendered.text[begin:end] for begin, end in rendered.spans] == [" a\nb <|end|>\n"]
