"""Chat templates: the text is that of transformers, the assistant's part of it is found, and rendering ends."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import MANIFEST, BasePack, fingerprint_of
from fedlora.data import template_sandbox
from fedlora.data.chat_template import ChatTemplate, load_chat_template
from fedlora.data.examples import Chat, ChatMessage
from fedlora.errors import DataError, PackError
from fedlora_client.data.encoding import IGNORED, ExampleEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.tiny.tokenizer import byte_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

INSTRUCTIONS = """\
{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}
{% else %}
    {% set system = '' %}{% set rest = messages %}
{% endif %}
{% for message in rest %}
    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('user and assistant must take turns') }}
    {% endif %}
    {% if message.role == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message.content | trim + ' [/INST]' -}}
    {% else %}
        {{- ' ' + message.content.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}
"""

DEFAULTS = """\
{%- macro header(role) -%}
{{ '<|im_start|>' ~ role ~ '\\n' }}
{%- endmacro -%}
{%- set ns = namespace(system='You are a careful assistant.', turns=0) -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set ns.system = messages[0].content -%}
{%- endif -%}
{{- bos_token }}{{ header('system') }}{{ ns.system }}
{%- if tools %}{{ tools | tojson }}{% endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {{- header(message.role) ~ ns.turns ~ ': ' ~ (message | tojson) ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- header('assistant') ~ (ns.turns + 1) ~ ': ' -}}{%- endif -%}
"""

MARKED = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Of earlier answers only the end is kept, as models that think aloud have it.
FORGETFUL = """\
{%- for message in messages %}
    {%- set content = message.content if loop.last else message.content.split('</think>')[-1] %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "instructions": INSTRUCTIONS,
    "defaults": DEFAULTS,
    "marked": MARKED,
    "forgetful": FORGETFUL,
}


def chat(*said: str, system: str | None = None) -> Chat:
    """User and assistant in turn, after what the system says."""
    turns = [ChatMessage(("user", "assistant")[number % 2], content) for number, content in enumerate(said)]
    return Chat((*([] if system is None else [ChatMessage("system", system)]), *turns))


CHATS = {
    "one-turn": chat("Hello", "Good day."),
    "with-system": chat("2 + 2?", "4", "And é\u2028?", "<5> & 'more'\n", system="Count."),
    "open-end": chat(" spaces ", "\n\nlines\n", "and a last question"),
    "thinking": chat("Why?", "<think>hm</think>Because."),
}


def special_tokenizer() -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    return tokenizer


def transformers_oracle(source: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=special_tokenizer(), chat_template=source, **TOKENS)


def as_dicts(messages: tuple[ChatMessage, ...]) -> list[dict[str, str]]:
    return [message.given() for message in messages]


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, "base/chat_template.jinja", TOKENS)


def learned_text(template: ChatTemplate, example: Chat) -> list[str]:
    rendered = template.rendered(example, "here")
    return [rendered.text[begin:end] for begin, end in rendered.spans]


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=list(TEMPLATES))
@pytest.mark.parametrize("example", CHATS.values(), ids=list(CHATS))
def test_the_text_and_its_tokens_are_those_of_transformers(base: BasePack, source: str, example: Chat) -> None:
    oracle, template = transformers_oracle(source), template_of(source)
    messages = as_dicts(example.messages)
    for prompt in (False, True):
        expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert template.text(example.messages, "here", add_generation_prompt=prompt) == expected
    shape = dataclasses.replace(base.shape, vocab_size=260)
    pairs = ExampleEncoder(tokenizer=special_tokenizer(), shape=shape, chat_template=template).pairs(example, "here")
    ids = oracle.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert pairs.inputs.tolist() == ids[:-1]
    assert all(target in (IGNORED, token) for target, token in zip(pairs.targets.tolist(), ids[1:], strict=True))


@pytest.mark.parametrize("example", CHATS.values(), ids=list(CHATS))
def test_the_marked_tokens_are_those_of_transformers(base: BasePack, example: Chat) -> None:
    given = transformers_oracle(MARKED).apply_chat_template(
        as_dicts(example.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    shape = dataclasses.replace(base.shape, vocab_size=260)
    encoder = ExampleEncoder(tokenizer=special_tokenizer(), shape=shape, chat_template=template_of(MARKED))
    targets = encoder.pairs(example, "here").targets.tolist()
    assert [int(target != IGNORED) for target in targets] == given["assistant_masks"][1:]
    assert sum(given["assistant_masks"]) > 1


def test_the_assistants_part_is_what_its_message_adds_to_the_prompt() -> None:
    example = chat("Hello", "Good day.", "Bye", "Come again!", system="Be kind.")
    assert learned_text(template_of(CHATML), example) == ["Good day.<|im_end|>\n", "Come again!<|im_end|>\n"]
    assert learned_text(template_of(INSTRUCTIONS), example) == [" Good day. </s>", " Come again! </s>"]
    assert learned_text(template_of(MARKED), example) == ["Good day.<|im_end|>", "Come again!<|im_end|>"]
    first, second = learned_text(template_of(DEFAULTS), example)
    assert first == '{"role": "assistant", "content": "Good day."}<|im_end|>\n'
    assert second == first.replace("Good day.", "Come again!")


@settings(deadline=None, max_examples=60)
@given(said=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=2, max_size=6))
def test_whatever_is_said_the_assistant_alone_is_learned(said: list[str]) -> None:
    example = chat(*said)
    answers = [message.content for message in example.messages if message.role == "assistant"]
    assert learned_text(template_of(CHATML), example) == [f"{answer}<|im_end|>\n" for answer in answers]
    assert learned_text(template_of(MARKED), example) == [f"{answer}<|im_end|>" for answer in answers]


def test_the_characters_that_mark_a_part_may_stand_in_a_message() -> None:
    example = chat("\U000f0000 and \U000f0001", "\U000f0002")
    assert learned_text(template_of(MARKED), example) == ["\U000f0002<|im_end|>"]


def test_a_template_that_changes_earlier_messages_has_its_answers_found_in_the_final_text() -> None:
    template = template_of(FORGETFUL)
    assert learned_text(template, CHATS["thinking"]) == ["<think>hm</think>Because.<|im_end|>\n"]
    longer = chat("Why?", "<think>hm</think>Because.", "And?", "That is all.")
    assert learned_text(template, longer) == ["Because.<|im_end|>\n", "That is all.<|im_end|>\n"]


def test_an_assistant_who_speaks_first_is_learned_or_refused_by_the_template() -> None:
    example = Chat((ChatMessage("assistant", "Welcome!"), ChatMessage("user", "Hello")))
    assert learned_text(template_of(CHATML), example) == ["Welcome!<|im_end|>\n"]
    needs_one = "{{ messages[0].role }}: {{ messages[0].content }}"
    with pytest.raises(DataError, match=r"^here: the assistant speaks first, .* begin with a message of the user"):
        template_of(needs_one).rendered(example, "here")


def test_messages_that_the_template_refuses_are_the_datas_error() -> None:
    example = Chat((ChatMessage("user", "a"), ChatMessage("user", "b"), ChatMessage("assistant", "c")))
    message = r"^here: base/chat_template\.jinja refuses these messages: user and assistant must take turns; change"
    with pytest.raises(DataError, match=message):
        template_of(INSTRUCTIONS).rendered(example, "here")


def test_a_content_that_is_not_there_is_nothing_to_every_template() -> None:
    call = {"function": {"name": "f"}}
    messages = (ChatMessage("user", "q"), ChatMessage("assistant", None, {"tool_calls": [call]}))
    start = (
        "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ '<' + call.function.name + '>' }}{% endfor %}"
    )
    for rest, expected in (
        ("{{ m.content }}", "q<f>"),
        ("{{ m.content | trim + ';' }}", "q;<f>;"),
        ("{{ m.content + ';' }}", "q;<f>;"),
        ("{% if m.content is not none %}{{ m.content + ';' }}{% endif %}", "q;<f>"),
        ("{% if 'content' in m %}{{ m.content + ';' }}{% endif %}", "q;<f>"),
        ("{% if m.content %}{{ m.content + ';' }}{% endif %}", "q;<f>"),
    ):
        template = template_of(start + rest + "{% endfor %}")
        assert template.text(messages, "here") == expected, rest


def test_todays_date_is_the_same_every_day() -> None:
    template = template_of("{{ strftime_now('%d %B %Y') }}")
    assert template.text(CHATS["one-turn"].messages, "here") == "26 July 2024"


def test_a_template_may_be_given_a_clock() -> None:
    template = ChatTemplate("{{ strftime_now('%d %B %Y %H:%M') }}", "t", {}, now=lambda: datetime(2031, 5, 6, 7, 8))
    assert template.text(CHATS["one-turn"].messages, "here") == "06 May 2031 07:08"


BROKEN = {
    "unclosed": ("{% for message in messages %}\n{{ message.role }}", 2),
    "no-expression": ("a\nb\n{% if %}", 3),
    "unknown-filter": ("\n{{ messages | no_such }}", 2),
    "by-chance": ("{{ messages | random }}", 1),
    "recursive": ("{% for message in messages recursive %}{{ loop(messages) }}{% endfor %}", 1),
    "unclosed-mark": ("{% generation %}", 1),
}


@pytest.mark.parametrize(("source", "line"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_template_is_refused_by_its_file_and_line(source: str, line: int) -> None:
    message = rf"^base/chat_template\.jinja: line {line}: not a Jinja template: .*; mend it and pack the model again$"
    with pytest.raises(PackError, match=message):
        template_of(source)


DOUBLING = "{{% set ns = namespace(x={0}) %}}{{% for i in range(100) %}}{1}{{% endfor %}}{{{{ ns.x }}}}"
ESCAPES = "access to attribute '.*' of '.*' object is unsafe"
TOO_LONG = "its text is longer than 4194304 characters"
TOO_MANY = "it takes more than 1000000 steps"
HOSTILE = {
    "class": ("{{ ''.__class__.__mro__ }}", ESCAPES),
    "globals": ("{{ raise_exception.__globals__.os }}", ESCAPES),
    "change": ("{{ messages.append(1) }}", ESCAPES),
    "include": ("{% include 'x' %}", "no loader"),
    "range": ("{{ range(10000000) | list }}", "Range too big"),
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", TOO_MANY),
    "lazy-loops": (
        "{% for a in range(99999) | map('string') %}{% for b in range(99999) | map('string') %}{% endfor %}{% endfor %}",
        TOO_MANY,
    ),
    "macros": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion|" + TOO_MANY),
    "long-output": ("{% for a in range(99999) %}" + "long" * 100 + "{% endfor %}", TOO_LONG),
    "times": ("{{ 'a' * 1000000000 }}", TOO_LONG),
    "times-of-lists": ("{{ 1000000000 * [1] }}", TOO_LONG),
    "concatenation": (DOUBLING.format("'a'", "{% set ns.x = ns.x ~ ns.x %}"), TOO_LONG),
    "sum": (DOUBLING.format("'a'", "{% set ns.x = ns.x + ns.x %}"), TOO_LONG),
    "sum-of-lists": (DOUBLING.format("['a']", "{% set ns.x = ns.x + ns.x %}"), TOO_LONG),
    "captured": (DOUBLING.format("'a'", "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}"), TOO_LONG),
    "replace": (DOUBLING.format("'a'", "{% set ns.x = ns.x | replace('a', 'aaaaaaaa') %}"), TOO_LONG),
    "replace-method": (DOUBLING.format("'a'", "{% set ns.x = ns.x.replace('a', 'aaaaaaaa') %}"), TOO_LONG),
    "join": (DOUBLING.format("'aa'", "{% set ns.x = ns.x | join(ns.x) %}"), TOO_LONG),
    "join-method": (DOUBLING.format("'aa'", "{% set ns.x = ns.x.join(ns.x) %}"), TOO_LONG),
    "escape": (DOUBLING.format("'<<'", "{% set ns.x = ns.x ~ ns.x | escape %}"), TOO_LONG),
    "filter-block": (DOUBLING.format("'a'", "{% filter indent(1000000000) %}a\na{% endfilter %}"), TOO_LONG),
    "indent": ("{{ 'a\n' | indent(1000000000, true) }}", TOO_LONG),
    "json": ("{{ messages | tojson(indent=1000000000) }}", TOO_LONG),
    "center": ("{{ 'a'.center(1000000000) }}", ESCAPES),
    "format": ("{{ '{:>1000000000}'.format(1) }}", ESCAPES),
    "format-by-item": ("{{ '{:>1000000000}'['format'](1) }}", ESCAPES),
    "percent": ("{{ '%1000000000d' % 1 }}", "the operator % is not for chat templates"),
    "wide-date": ("{{ strftime_now('%999d' * 99) }}", "a format of a date is longer than 256 characters"),
    "power": ("{{ 10 ** 10 ** 10 }}", r"the operator \*\* is not for chat templates"),
    "squares": (DOUBLING.format("3", "{% set ns.x = ns.x * ns.x %}"), "a number has more than 4096 bits"),
    "division": ("{{ 1 // 0 }}", "division"),
    "marks": (
        "{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}",
        "must stand one after another",
    ),
}


@pytest.mark.parametrize(("source", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_template_that_escapes_or_runs_away_is_stopped(source: str, message: str) -> None:
    with pytest.raises(PackError, match=rf"^base/chat_template\.jinja: .*({message})"):
        template_of(source).rendered(CHATS["one-turn"], "device kitchen")


def test_a_failure_names_the_templates_line_and_the_datas_place() -> None:
    source = "{% for message in messages %}\n{{ message.content }}\n{{ message.tool.name }}\n{% endfor %}"
    message = (
        r"^base/chat_template\.jinja: line 3: cannot write the messages of kitchen: 'dict object' has no attribute"
    )
    with pytest.raises(PackError, match=message):
        template_of(source).rendered(CHATS["one-turn"], "kitchen")


def test_a_template_begins_with_all_of_its_steps_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_STEPS", 30)
    environment = template_sandbox.BoundedEnvironment()
    template = environment.compiled("{% for a in range(10) %}{% endfor %}{{ messages | length }}", "t")
    for _ in range(10):
        assert environment.rendered(template, {"messages": [1, 2]}) == "2"


def test_filters_that_are_bounded_write_what_jinjas_own_write() -> None:
    source = (
        "{{ [1, 'b'] | join(', ') }} {{ ', '.join(['a', 'b']) }} {{ 'a-b-c' | replace('-', '+', 1) }} "
        "{{ 'a-b-c'.replace('-', '+') }} {{ 'a\nb' | indent(2) }} {% set x | upper %}low{% endset %}{{ x }} "
        "{% filter trim | upper %} q {% endfilter %} {% for a in 'abc' | map('upper') if a != 'B' %}"
        "{{ loop.index }}/{{ loop.length }}{{ a }}{% else %}none{% endfor %} {{ {'b': '<é>', 'a': 1} | tojson(indent=2) }}"
    )
    expected = transformers_oracle(source).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert template_of(source).text((ChatMessage("user", "a"),), "here") == expected


def pack_with(base: BasePack, directory: Path, contents: Mapping[str, object], *, listed: bool = True) -> Path:
    """A copy of a pack with other tokenizer files, which its manifest lists or not: `chat_template` is the .jinja one."""
    shutil.copytree(base.directory, directory)
    manifest = json.loads((directory / MANIFEST).read_text())
    for name, content in contents.items():
        path = directory / ("chat_template.jinja" if name == "chat_template" else f"{name}.json")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        if listed:
            manifest["files"][path.name] = "0" * 64
    manifest["fingerprint"] = fingerprint_of(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return directory


def written_by(directory: Path) -> str:
    template = load_chat_template(directory)
    assert template is not None
    return template.text((ChatMessage("user", "a"),), "here")


def test_a_base_without_a_template_has_none(base: BasePack, tmp_path: Path) -> None:
    assert load_chat_template(base.directory) is None
    assert load_chat_template(pack_with(base, tmp_path / "pack", {"tokenizer_config": TOKENS})) is None


def test_the_template_of_the_settings_may_be_one_or_the_default_of_several(base: BasePack, tmp_path: Path) -> None:
    one = pack_with(base, tmp_path / "one", {"tokenizer_config": {"chat_template": "one"}})
    assert written_by(one) == "one"
    named = [{"name": "rag", "template": "wrong"}, {"name": "default", "template": "right"}]
    assert written_by(pack_with(base, tmp_path / "several", {"tokenizer_config": {"chat_template": named}})) == "right"


def test_chats_with_tools_have_the_template_named_for_them_as_in_transformers(base: BasePack, tmp_path: Path) -> None:
    plain, with_tools = "{{ messages[0].content }}", "{{ messages[0].content }}{{ tools | tojson }}"
    named = [{"name": "tool_use", "template": with_tools}, {"name": "default", "template": plain}]
    listed = pack_with(base, tmp_path / "listed", {"tokenizer_config": {"chat_template": named}})
    apart = pack_with(base, tmp_path / "apart", {"chat_template": plain.encode()})
    (apart / "additional_chat_templates").mkdir()
    (apart / "additional_chat_templates" / "tool_use.jinja").write_text(with_tools)
    (apart / MANIFEST).unlink()  # a checkpoint has no manifest
    message, tools = ChatMessage("user", "a"), [{"name": "f"}]
    for directory in (listed, apart):
        oracle = PreTrainedTokenizerFast.from_pretrained(directory)
        template = load_chat_template(directory)
        assert template is not None
        for some in (None, tools):
            expected = oracle.apply_chat_template([message.given()], tools=some, tokenize=False)
            assert template.text([message], "here", tools=some) == expected


def test_a_file_of_its_own_goes_before_the_settings(base: BasePack, tmp_path: Path) -> None:
    pack = pack_with(
        base, tmp_path / "pack", {"chat_template": "é".encode(), "tokenizer_config": {"chat_template": "two"}}
    )
    assert written_by(pack) == "é"


def test_a_template_that_the_fingerprint_does_not_cover_is_not_the_bases(base: BasePack, tmp_path: Path) -> None:
    assert load_chat_template(pack_with(base, tmp_path / "pack", {"chat_template": b"injected"}, listed=False)) is None


def test_special_tokens_come_from_either_file_as_text_or_object(base: BasePack, tmp_path: Path) -> None:
    pack = pack_with(
        base,
        tmp_path / "pack",
        {
            "chat_template": b"{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
            "special_tokens_map": {"bos_token": "<old>", "eos_token": {"content": "</s>", "lstrip": False}},
            "tokenizer_config": {"bos_token": {"content": "<s>"}, "pad_token": None, "model_max_length": 7},
        },
    )
    assert written_by(pack) == "<s>|</s>|"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"tokenizer_config": {"chat_template": 7}}, r"tokenizer_config\.json: chat_template: expected .*, got int"),
        ({"tokenizer_config": {"chat_template": ["a"]}}, r"chat_template: expected a template .*, got list"),
        (
            {"tokenizer_config": {"chat_template": [{"name": "rag", "template": "a"}, {"name": "tool"}]}},
            "expected a template named default, got rag, tool",
        ),
        ({"tokenizer_config": {"chat_template": []}}, "expected a template named default, got nothing"),
        (
            {"tokenizer_config": {"chat_template": "\n{{"}},
            r"tokenizer_config\.json: chat_template: line 2: not a Jinja",
        ),
        ({"tokenizer_config": [1]}, r"tokenizer_config\.json: expected a JSON object, got list"),
        ({"chat_template": b"caf\xe9"}, r"chat_template\.jinja: not UTF-8 text: byte 3 is wrong"),
    ],
)
def test_a_damaged_template_is_refused_by_its_place(
    base: BasePack, tmp_path: Path, contents: dict[str, object], message: str
) -> None:
    with pytest.raises(PackError, match=message):
        load_chat_template(pack_with(base, tmp_path / "pack", contents))


def test_a_template_that_is_listed_and_missing_is_refused_by_its_place(base: BasePack, tmp_path: Path) -> None:
    pack = pack_with(base, tmp_path / "pack", {"chat_template": b"a"})
    (pack / "chat_template.jinja").unlink()
    with pytest.raises(
        PackError, match=r"chat_template\.jinja: cannot be read: No such file or directory; copy the pack"
    ):
        load_chat_template(pack)
