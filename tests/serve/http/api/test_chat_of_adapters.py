"""An adapter that brings a chat template and ends of its own: the service speaks with it as it was trained to be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.exported.profiles import Profile
from fedlora_export.adapter_export import export_peft
from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.local.engine import Engine
from fedlora_serve.local.generate import generate
from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.tokenizer import prompt_tokens

from tests.serve.http.real_services import ADMIN_KEY, WEB_KEY, opened
from tests.serve.http.services import Client
from tests.serve.speakers import Speaker, greedy

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [{"role": "user", "content": "Hi"}]
WRITTEN = list(b"[user]Hi[assistant]")  # a token a byte: see `byte_tokenizer`


@pytest.fixture(scope="module")
def said(single: Engine, speakers: Sequence[Speaker]) -> list[int]:
    """What the adapter answers to the chat, without an end."""
    tokens = list(single.tokenizer.encode(bytes(WRITTEN).decode(), add_special_tokens=False).ids)
    return greedy(single, tokens, speakers[3], 12)


@pytest.fixture(scope="module")
def bringing(adapter_folder: Path, said: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapter `plain`, and the same adapter as `chat`, which brings a template and an end."""
    folder = tmp_path_factory.mktemp("bringing")
    for name in ("plain", "chat"):
        shutil.copytree(adapter_folder / "adapter-3", folder / name)
    (folder / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    end = next(token for place, token in enumerate(said) if place >= 3 and token not in said[:place])
    (folder / "chat" / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    return folder


@pytest.fixture
def state(folders: dict[Profile, Path], bringing: Path) -> Iterator[ServiceState]:
    adapters = {name: str(bringing / name) for name in ("plain", "chat")}
    with opened(folders["kernel"], adapters=adapters, adapter_folder=str(bringing)) as state:
        state.template = None  # the base has none
        yield state


def ask(state: ServiceState, route: str, model: str, **fields: Any) -> Any:
    client = Client(state, Authorization=f"Bearer {WEB_KEY}")
    return client.post(f"/v1/{route}", {"model": model, "max_tokens": 12, "temperature": 0, **fields})


def test_an_adapters_own_template_and_end_count_for_its_answers_alone(
    state: ServiceState, bringing: Path, said: list[int]
) -> None:
    end = json.loads((bringing / "chat" / "generation_config.json").read_text())["eos_token_id"]
    chat = ask(state, "chat/completions", "chat", messages=CHAT).json()
    assert chat["usage"]["prompt_tokens"] == len(WRITTEN)
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert chat["usage"]["completion_tokens"] == said.index(end) + 1
    # The same values under a name without settings: the base's ends alone, and no template.
    refused = ask(state, "chat/completions", "plain", messages=CHAT)
    assert refused.status_code == 400
    assert (
        "neither base nor plain has a chat template; use /v1/completions, or serve with --chat-template" in refused.text
    )
    prompt = bytes(WRITTEN).decode()
    fields = {"prompt": prompt, "add_special_tokens": False}
    whole = ask(state, "completions", "plain", **fields).json()
    ended = ask(state, "completions", "chat", **fields).json()
    assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 12)
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ask(state, "completions", "chat", **fields, ignore_eos=True).json()["choices"] == whole["choices"]


def test_an_adapter_that_is_loaded_over_http_brings_them_too(state: ServiceState) -> None:
    admin = Client(state, Authorization=f"Bearer {ADMIN_KEY}")
    assert admin.post("/v1/load_lora_adapter", {"lora_name": "later", "lora_path": "chat"}).status_code == 200
    assert ask(state, "chat/completions", "later", messages=CHAT).json()["choices"][0]["finish_reason"] == "stop"


def test_an_adapter_file_keeps_them_in_its_manifest(
    folders: dict[Profile, Path], long_base: BasePack, bringing: Path, tmp_path: Path, said: list[int]
) -> None:
    export_peft(bringing / "chat", tmp_path / "chat.onnx_adapter")
    of_file, of_folder = (load_adapter(path, long_base) for path in (tmp_path / "chat.onnx_adapter", bringing / "chat"))
    assert of_file.digest == of_folder.digest
    assert (of_file.chat.source, of_file.chat.eos_token_ids) == (of_folder.chat.source, of_folder.chat.eos_token_ids)
    with opened(folders["kernel"], adapters={"file": str(tmp_path / "chat.onnx_adapter")}) as state:
        state.template = None
        answer = ask(state, "chat/completions", "file", messages=CHAT).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    export_peft(bringing / "plain", tmp_path / "plain.onnx_adapter")
    assert "chat" not in json.loads((tmp_path / "plain.onnx_adapter.json").read_text())


def test_generate_ends_at_the_adapters_end(
    single: Engine, speakers: Sequence[Speaker], bringing: Path, tmp_path: Path
) -> None:
    tokens = greedy(single, prompt_tokens(single.tokenizer, single.base.shape, "Hi"), speakers[3], 12)
    end = next(token for place, token in enumerate(tokens) if place >= 3 and token not in tokens[:place])
    shutil.copytree(bringing / "plain", tmp_path / "mine")
    (tmp_path / "mine" / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    for count in (12, tokens.index(end)):  # it says the same as one that may say no more than this
        adapter = single.load_adapter(tmp_path / "mine")
        got = "".join(generate(single, "Hi", Sampling(max_tokens=12), adapter=adapter))
        plain = single.load_adapter(bringing / "plain")
        said = "".join(generate(single, "Hi", Sampling(max_tokens=count), adapter=plain))
        assert (got == said) == (count < 12)


def test_the_operator_names_templates_for_the_base_and_for_an_adapter(
    folders: dict[Profile, Path], bringing: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.jinja").write_text("base says {{ messages[0].content }}")
    (tmp_path / "its.jinja").write_text("its own {{ messages[0].content }}")
    adapters = {name: str(bringing / name) for name in ("plain", "chat")}
    fields: dict[str, Any] = {
        "chat_template": str(tmp_path / "base.jinja"), "chat_templates": {"plain": str(tmp_path / "its.jinja")},
    }  # fmt: skip
    with opened(folders["kernel"], keeps_template=True, adapters=adapters, **fields) as state:
        lengths = {
            name: ask(state, "chat/completions", name, messages=CHAT).json()["usage"]["prompt_tokens"]
            for name in ("base", "plain", "chat")
        }
    assert lengths == {"base": len("base says Hi"), "plain": len("its own Hi"), "chat": len(WRITTEN)}
