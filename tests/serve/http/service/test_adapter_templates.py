"""Whose template writes a chat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fedlora.data.chat_settings import ChatSettings
from fedlora.data.examples import ChatMessage
from fedlora.errors import ConfigError
from fedlora_serve.adapters.loading import LoadedAdapter, WeightedAdapter
from fedlora_serve.adapters.together import together
from fedlora_serve.http.service.adapter_templates import AdapterTemplates, template_file

CHAT = [ChatMessage("user", "hi")]


def version(name: str, source: str | None, **tokens: str) -> LoadedAdapter:
    chat = ChatSettings(source=source, place=f"{name}'s", special_tokens=tokens)
    return LoadedAdapter(name=name, digest="d", values={}, rank=1, size_bytes=1, source=Path(name), chat=chat)


def written(templates: AdapterTemplates, adapter: LoadedAdapter) -> str:
    template = templates.of(adapter)
    assert template is not None
    return template.text(CHAT, "here")


def test_an_adapters_own_template_counts_with_its_own_tokens_before_the_bases() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}"
    templates = AdapterTemplates({"bos_token": "<b>", "eos_token": "<e>"})
    assert written(templates, version("one", source)) == "<b><e>hi"
    assert written(templates, version("two", source, eos_token="<im_end>")) == "<b><im_end>hi"


def test_what_the_operator_named_for_an_adapter_counts_before_its_own() -> None:
    given = {"one": ChatSettings(source="given {{ messages[0].content }}", place="FILE")}
    templates = AdapterTemplates(given=given)
    assert written(templates, version("one", "own")) == "given hi"
    assert written(templates, version("one", None)) == "given hi"
    assert written(templates, version("two", "own")) == "own"


def test_adapters_that_answer_together_chat_as_all_of_them_do_or_as_the_base() -> None:
    def of(*adapters: LoadedAdapter) -> LoadedAdapter:
        return together([WeightedAdapter(adapter=adapter, weight=1.0) for adapter in adapters])

    templates = AdapterTemplates(given={"two": ChatSettings(source="own {{ eos_token }}", place="FILE")})
    one, two, other = (version(name, "own {{ eos_token }}", eos_token="<e>") for name in ("one", "two", "other"))
    assert written(templates, of(one, other)) == "own <e>"
    assert templates.of(of(one, two)) is None
    assert templates.of(of(one, version("none", None))) is None


def test_the_base_and_an_adapter_without_a_template_have_none_here() -> None:
    assert AdapterTemplates().of(None) is None
    assert AdapterTemplates().of(version("one", None, eos_token="x")) is None


def test_no_more_than_some_templates_are_kept() -> None:
    templates = AdapterTemplates()
    adapters = [version("one", f"{number}") for number in range(200)]
    assert [written(templates, adapter) for adapter in adapters] == [str(number) for number in range(200)]
    assert len(templates._compiled) <= 64
    same = [replace(adapters[-1], name=str(number), digest=str(number)) for number in range(100)]
    assert len({id(templates.of(adapter)) for adapter in same}) == 1  # one for all that say the same


def test_a_file_that_is_no_template_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chat template .*none\.jinja: no such file"):
        template_file(tmp_path / "none.jinja")
    (tmp_path / "chat.txt").write_text("{% if %}")
    with pytest.raises(ConfigError, match=r"chat\.txt: line 1: not a Jinja template: .*; mend it$"):
        template_file(tmp_path / "chat.txt")
    (tmp_path / "chat.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"chat\.txt: not UTF-8 text"):
        template_file(tmp_path / "chat.txt")
