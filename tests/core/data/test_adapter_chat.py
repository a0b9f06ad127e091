"""What an adapter's folder says of chats, read within bounds, and kept in a manifest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fedlora.data.adapter_chat import adapter_chat_settings, chat_from_json, chat_to_json
from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import AdapterError

TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"
IM_END = {"content": "<|im_end|>", "special": True}


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        path = folder / {"template": "chat_template.jinja"}.get(name, f"{name}.json")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_folder_without_a_tokenizer_says_nothing(tmp_path: Path) -> None:
    assert adapter_chat_settings(tmp_path) == ChatSettings()
    assert chat_to_json(ChatSettings()) == {}


def test_what_a_training_saved_beside_the_adapter_is_read(tmp_path: Path) -> None:
    write(
        tmp_path, template=TEMPLATE, tokenizer_config={"eos_token": IM_END, "bos_token": None, "model_max_length": 9},
        special_tokens_map={"pad_token": "<pad>"}, generation_config={"eos_token_id": [7, 1, "x", 10**9]},
    )  # fmt: skip
    settings = adapter_chat_settings(tmp_path)
    assert (settings.source, settings.place) == (TEMPLATE, str(tmp_path / "chat_template.jinja"))
    assert settings.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    assert settings.end_tokens({"<|im_end|>": 5}.get, 100) == (7, 1, 5)
    assert settings.end_tokens(lambda _: None, 100) == (7, 1)  # a token that the base does not have ends nothing
    assert chat_from_json(json.loads(json.dumps(chat_to_json(settings))), "m") == ChatSettings(
        source=TEMPLATE, place="m: chat", special_tokens=settings.special_tokens, eos_token_ids=(7, 1, 10**9)
    )


@pytest.mark.parametrize(
    "value", [TEMPLATE, [{"name": "tool_use", "template": "T"}, {"name": "default", "template": TEMPLATE}]]
)
def test_a_template_within_the_tokenizers_settings_is_read(tmp_path: Path, value: object) -> None:
    settings = adapter_chat_settings(write(tmp_path, tokenizer_config={"chat_template": value}))
    assert settings.source == TEMPLATE
    assert settings.tool_source == ("T" if isinstance(value, list) else None)


def test_what_transformers_saves_is_read_as_it_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tests.tiny.tokenizer import byte_tokenizer

    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="</s>", bos_token="<s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(tmp_path)
    settings = adapter_chat_settings(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert settings.source == again.chat_template
    assert settings.end_tokens(again.convert_tokens_to_ids, 258) == (again.eos_token_id,)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"tokenizer_config": "{"}, r"tokenizer_config\.json: not JSON"),
    "a list": ({"generation_config": []}, r"generation_config\.json: expected a JSON object"),
    "no template": ({"template": "{% for %}"}, r"chat_template\.jinja: line 1: not a Jinja template"),
    "a template that is a number": ({"tokenizer_config": {"chat_template": 5}}, "expected a template or a list"),
    "no default": ({"tokenizer_config": {"chat_template": [{"name": "x", "template": "y"}]}}, "named default, got x"),
    "a name that is a list": (
        {"tokenizer_config": {"chat_template": [{"name": ["x"]}]}},
        r"named default, got \['x'\]",
    ),
    "a large template": (
        {"template": "x" * ((1 << 20) + 1)},
        r"chat_template\.jinja: cannot be read: more than 1048576 bytes",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_used_is_named_with_a_remedy_that_works(tmp_path: Path, what: str) -> None:
    files, words = BROKEN[what]
    write(tmp_path, **files)
    with pytest.raises(AdapterError, match=words) as told:
        adapter_chat_settings(tmp_path)
    assert str(tmp_path) in str(told.value)
    for file in tmp_path.iterdir():
        file.unlink()
    assert adapter_chat_settings(tmp_path) == ChatSettings()


def test_a_pipe_and_a_file_with_holes_are_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "chat_template.jinja")
    with pytest.raises(AdapterError, match="not a plain file"):
        adapter_chat_settings(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(AdapterError, match="more than 16777216 bytes"):
        adapter_chat_settings(tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "values", [{"source": 5}, {"other": "x"}, {"special_tokens": []}, {"special_tokens": {"eos_token": 1}},
               {"eos_token_ids": ["a"]}, {"eos_token_ids": [True]}, {"source": "{% for %}"}],
)  # fmt: skip
def test_a_manifest_that_says_it_otherwise_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match=r"^m: chat"):
        chat_from_json(values, "m")
