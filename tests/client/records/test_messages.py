"""What the messages of a record say: each field is read, handed to the template, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import Chat, size_bytes
from fedlora.errors import DataError
from fedlora_client.data.encoding import IGNORED, ExampleEncoder
from fedlora_client.data.windows import Windows, make_windows
from fedlora_client.records.jsonl import parse_example
from transformers import PreTrainedTokenizerFast

from tests.tiny.tokenizer import byte_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# It writes tools, calls and no thoughts.
CALLING = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function.name }} {{ call.function.arguments }}</call>{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


def user(content: Any = "q", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def answer(content: Any = "a", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def call(arguments: object = '{"city":"Oslo"}') -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


CALLED = [user("weather?"), answer("", tool_calls=[call()]), {"role": "tool", "tool_call_id": "c1", "content": "rain"}]


def chat(*messages: Any, **fields: Any) -> Chat:
    example = parse_example(json.dumps({"messages": messages, **fields}))
    assert isinstance(example, Chat)
    return example


def read_and_learned(base: BasePack, source: str, example: Chat) -> tuple[str, str]:
    """All that is read of a chat, and what is learned of it."""
    shape = dataclasses.replace(base.shape, vocab_size=512)
    tokenizer = byte_tokenizer()
    encoder = ExampleEncoder(tokenizer=tokenizer, shape=shape, chat_template=ChatTemplate(source, "t.jinja", TOKENS))
    pairs = encoder.pairs(example, "here")
    targets = [int(token) for token in pairs.targets if token != IGNORED]
    ids = (
        [*map(int, pairs.inputs), int(pairs.targets[-1])] if pairs.targets[-1] != IGNORED else [*map(int, pairs.inputs)]
    )
    return tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(targets, skip_special_tokens=False)


def oracle(source: str, messages: Any, **fields: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), chat_template=source, **TOKENS)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **fields)
    assert isinstance(text, str)
    return text


WRITTEN: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "calls-and-tools": (
        [*CALLED, answer("It rains.")],
        {"tools": TOOLS},
        '<call>get_weather {"city":"Oslo"}</call></s>It rains.</s>',
    ),
    "tools-as-a-string": ([user(), answer()], {"tools": json.dumps(TOOLS)}, "a</s>"),
    "no-tools": ([user(), answer()], {"tools": None}, "a</s>"),
    "null-content": (
        [user("weather?"), answer(None, tool_calls=[call("{}")]), {"role": "tool", "content": "rain"}, answer("yes")],
        {},
        "<call>get_weather {}</call></s>yes</s>",
    ),
    "absent-content": (
        [user(), {"role": "assistant", "tool_calls": [call("{}")]}, user(), answer("yes")],
        {},
        "<call>get_weather {}</call></s>yes</s>",
    ),
    "null-fields": ([user(name=None), answer(tool_calls=None, refusal=None, audio=None)], {}, "a</s>"),
    "empty-fields": ([user(), answer(tool_calls=[], annotations=[])], {}, "a</s>"),
}


@pytest.mark.parametrize(("messages", "fields", "learned"), WRITTEN.values(), ids=list(WRITTEN))
def test_all_that_a_message_says_is_read_as_transformers_writes_it(
    base: BasePack, messages: list[dict[str, Any]], fields: dict[str, Any], learned: str
) -> None:
    tools = json.loads(fields["tools"]) if isinstance(fields.get("tools"), str) else fields.get("tools")
    text, said = read_and_learned(base, CALLING, chat(*messages, **fields))
    assert oracle(CALLING, messages, tools=tools).startswith(text)
    assert said.replace("\n", "") == learned


CHOSEN: dict[str, tuple[list[dict[str, Any]], str]] = {
    "weight": ([user(), answer("wrong", weight=0), user(), answer("right", weight=1)], "right</s>\n"),
    "weight-of-the-last": ([user(), answer("right"), user(), answer("wrong", weight=0)], "right</s>\n"),
    "float-weight": ([user(), answer("wrong", weight=0.0), user(), answer("right", weight=1.0)], "right</s>\n"),
    "train": ([user(), answer("wrong", train=False), user(), answer("right", train=True)], "right</s>\n"),
    "both": ([user(), answer("wrong", train=False, weight=0), user(), answer("right")], "right</s>\n"),
    "null": ([user(), answer("one", weight=None), user(), answer("two", train=None)], "one</s>\ntwo</s>\n"),
    "of-others": ([user(weight=0, train=False), answer("right")], "right</s>\n"),
}


@pytest.mark.parametrize(("messages", "learned"), CHOSEN.values(), ids=list(CHOSEN))
def test_weight_and_train_say_which_answers_are_learned(
    base: BasePack, messages: list[dict[str, Any]], learned: str
) -> None:
    text, said = read_and_learned(base, PLAIN, chat(*messages))
    assert said == learned
    plain = [{name: message[name] for name in ("role", "content")} for message in messages]
    assert oracle(PLAIN, plain).startswith(text)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "half-a-weight": (
        {"messages": [user(), answer(weight=0.5)]},
        r"message 2: weight must be 0 \(not learned\) or 1, got 0.5",
    ),
    "true-weight": ({"messages": [user(), answer(weight=True)]}, "message 2: weight must be 0 .* got True"),
    "weight-as-text": ({"messages": [user(), answer(weight="0")]}, "message 2: weight must be 0 .* got the string '0'"),
    "train-as-number": ({"messages": [user(), answer(train=0)]}, "message 2: train must be true or false, got 0"),
    "contradiction": ({"messages": [user(), answer(train=True, weight=0)]}, "message 2: weight and train disagree"),
    "a-learned-user": ({"messages": [user(weight=1), answer()]}, "message 1: weight asks to learn .* role 'user'"),
    "a-trained-user": ({"messages": [user(train=True), answer()]}, "message 1: train asks to learn .* role 'user'"),
    "a-picture": (
        {"messages": [user([{"type": "image_url", "image_url": {}}]), answer()]},
        "message 1: content: part 1 is of type 'image_url'; only text is learned here",
    ),
    "calls-as-object": (
        {"messages": [user(), answer(tool_calls={})]},
        "message 2: tool_calls must be a list of objects",
    ),
    "tools-as-names": ({"messages": [user(), answer()], "tools": ["f"]}, "tools must be a list of objects"),
    "tools-as-words": ({"messages": [user(), answer()], "tools": "f"}, "tools is a string that is not JSON"),
    "functions": (
        {"messages": [user(), answer()], "functions": [{"name": "f"}]},
        "functions is not supported: write it as tools",
    ),
    "variables": (
        {"messages": [user(), answer()], "chat_template_kwargs": [1]},
        "chat_template_kwargs must be an object",
    ),
    "silent-user": (
        {"messages": [user(None), answer()]},
        "message 1: content must be a string or a list of parts, got null",
    ),
    "silent-answer": ({"messages": [user(), answer(None)]}, "message 2: content must be a string or a list of parts"),
    "half-a-character": ({"messages": [user(), answer(mood="\ud83d")]}, r"message 2 is not text: \\ud83d is half"),
}


@pytest.mark.parametrize(("record", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_a_message_may_not_say_is_refused_by_name(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^{message}"):
        parse_example(json.dumps(record))


def test_a_chat_of_which_no_answer_is_to_be_learned_is_left_out_as_a_record_that_says_so() -> None:
    for nothing in ({"weight": 0}, {"train": False}):
        assert parse_example(json.dumps({"messages": [user(), answer(**nothing)]})) is None


def test_what_the_system_says_beside_the_messages_comes_before_them() -> None:
    assert chat(user(), answer(), system="Be kind.") == chat(
        {"role": "system", "content": "Be kind."}, user(), answer()
    )
    with pytest.raises(DataError, match="system: the messages begin with one"):
        chat({"role": "system", "content": "a"}, user(), answer(), system="b")


UNKNOWN_TO_THE_TEMPLATE: dict[str, tuple[Chat, str]] = {
    "thoughts": (
        chat(user(), answer(reasoning_content="hm")),
        "message 2: reasoning_content: .* write it into content",
    ),
    "thoughts-by-another-name": (chat(user(), answer(thinking="hm")), "message 2: thinking: .* write it into content"),
    "calls": (
        chat(user(), answer(tool_calls=[call()])),
        "message 2: tool_calls: .* pack a model whose template calls tools",
    ),
    "an-old-call": (chat(user(), answer(function_call={"name": "f"})), "message 2: function_call: "),
    "tools": (chat(user(), answer(), tools=TOOLS), "tools: t.jinja writes none; remove them"),
    "documents": (chat(user(), answer(), documents=[{"text": "a"}]), "documents: t.jinja writes none; remove them"),
    "variables": (
        chat(user(), answer(), chat_template_kwargs={"enable_thinking": True}),
        "enable_thinking is no variable of",
    ),
    "a-role": (
        chat(user(), {"role": "critic", "content": "no"}, answer()),
        "message 2: .* writes nothing of .* role 'critic'",
    ),
    "a-system": (chat({"role": "system", "content": "Be kind."}, user(), answer()), "message 1: .* role 'system'"),
    "a-typo": (chat(user(), answer(wieght=0)), "message 2: wieght: .* did you mean weight"),
    "another-typo": (chat(user(), answer(tool_call=[call()])), "message 2: tool_call: .* did you mean tool_call"),
    "another-word-for-train": (chat(user(), answer(training=False)), "message 2: training: .* train .* says whether"),
    "a-mask": (chat(user(), answer(loss_mask=0)), "message 2: loss_mask: .* says whether a message is learned"),
    "axolotl's": (
        chat(user(), answer(train_detail=[{"train": False}])),
        "message 2: train_detail: .* says whether a message is learned",
    ),
    "ms-swift's": (chat(user(), answer(loss_scale=0.5)), "message 2: loss_scale: .* says whether a message is learned"),
    "verl's": (chat(user(), answer(trainable=1)), "message 2: trainable: .* says whether a message is learned"),
    "a-claim": (chat(user(), answer(is_good=False)), "message 2: is_good: .* says whether a message is learned"),
}


@pytest.mark.parametrize(("example", "message"), UNKNOWN_TO_THE_TEMPLATE.values(), ids=list(UNKNOWN_TO_THE_TEMPLATE))
def test_what_the_template_would_leave_out_is_refused_by_name(base: BasePack, example: Chat, message: str) -> None:
    with pytest.raises(DataError, match=f"^here: {message}"):
        read_and_learned(base, PLAIN, example)


def windows_of(base: BasePack, source: str, *examples: Chat) -> Windows:
    shape = dataclasses.replace(base.shape, vocab_size=512)
    template = ChatTemplate(source, "t.jinja", TOKENS)
    return make_windows(examples, byte_tokenizer(), shape, 64, "here", chat_template=template)


def test_what_changes_no_text_is_told(base: BasePack) -> None:
    examples = (chat(user(name="ann"), answer(id=7)), chat(user(name="bob", at="12:30"), answer()))
    assert windows_of(base, PLAIN, *examples).unheard == ("name", "id", "at")
    with_name = PLAIN.replace("{{ m.content }}", "{{ m.name }}{{ m.content }}")
    assert windows_of(base, with_name, *examples).unheard == ("id", "at")


THOUGHT = "<think>\nhm\n</think>\n\n"
# Thoughts are taken out of every answer (DeepSeek-R1's), or out of all but the last (Qwen3's).
WITHOUT = PLAIN.replace("m.content", "m.content.split('</think>')[-1]")
LAST_ALONE = PLAIN.replace("m.content", "(m.content if loop.last else m.content.split('</think>')[-1])")


@pytest.mark.parametrize("thought", [THOUGHT, "hm\n</think>", "<think>hm</think>"])
@pytest.mark.parametrize("parts", [False, True])
def test_thoughts_in_a_content_that_the_template_takes_out_are_refused_or_told(
    base: BasePack, thought: str, parts: bool
) -> None:
    said: Any = [{"type": "text", "text": f"{thought}a"}] if parts else f"{thought}a"
    example, earlier = chat(user(), answer(said)), chat(user(), answer(said), user(), answer("b"))
    with pytest.raises(DataError, match=r"^here: message 2: content: t\.jinja leaves out what is thought"):
        read_and_learned(base, WITHOUT, example)
    assert windows_of(base, WITHOUT, earlier).unheard == ("thoughts in content",)
    assert windows_of(base, LAST_ALONE, earlier).unheard == ("thoughts in content",)
    assert windows_of(base, PLAIN, earlier, example).unheard == ()
    assert read_and_learned(base, LAST_ALONE, example)[1].startswith(f"{thought}a")


@pytest.mark.parametrize("said", ["a", "<think>\n\n</think>\n\na", "</think>a"])
def test_where_nothing_is_thought_nothing_is_missed(base: BasePack, said: str) -> None:
    assert windows_of(base, WITHOUT, chat(user(), answer(said))).unheard == ()


def test_thoughts_that_are_not_to_be_learned_are_told(base: BasePack) -> None:
    example = chat(user(), answer("a"), user(), answer(f"{THOUGHT}b", weight=0))
    assert windows_of(base, WITHOUT, example).unheard == ("thoughts in content",)


def test_a_name_is_read_where_the_template_writes_it(base: BasePack) -> None:
    source = PLAIN.replace("[{{ m.role }}]", "[{{ m.role }} {{ m.name }}]")
    messages = [user(name="ann"), answer("yes", name="bot")]
    text, _ = read_and_learned(base, source, chat(*messages))
    assert oracle(source, messages).startswith(text)
    assert "[user ann]" in text


def test_answers_that_are_not_found_are_counted(base: BasePack) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content | upper }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    windows = windows_of(base, source, chat(user(), answer(), user(), answer()), chat(user(), answer()))
    assert windows.not_found == 0  # a mark has no upper case, so it is found
    shortened = source.replace("m.content | upper", "m.content[:1]")
    windows = windows_of(base, shortened, chat(user(), answer("aa"), user(), answer()), chat(user(), answer()))
    assert windows.not_found == 1
    assert windows.examples == 2


def test_calls_and_thoughts_count_as_a_devices_data() -> None:
    said = chat(user("ab"), answer("c", reasoning_content="hm", tool_calls=[{"function": {"name": "f"}}]))
    assert size_bytes(said) == len("ab" + "c" + "hm" + "function" + "name" + "f")
