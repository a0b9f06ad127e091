"""A service that takes signed releases alone: over HTTP as well; it says which release answers, and whose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, ConfigError
from fedlora.identity.keys import SigningKey
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.config_file import read_config
from fedlora_serve.http.service.state import ServiceState

from tests.serve.http.own_server import served
from tests.serve.http.real_services import ADMIN_KEY, WEB_KEY, opened
from tests.tiny.adapters import random_adapter
from tests.tiny.releases import write_release

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
WEB, ADMIN = {"Authorization": f"Bearer {WEB_KEY}"}, {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture
def adapters(long_base: BasePack, tmp_path: Path) -> Path:
    """A folder with a release, one of another key, and an adapter that nobody signed."""
    folder = tmp_path / "adapters"
    write_release(folder / "tone", long_base, KEY)
    write_release(folder / "forged", long_base, OTHER)
    content = PeftDirectory(adapter=random_adapter(long_base), base_fingerprint=long_base.fingerprint)
    write_peft(folder / "plain", content)
    KEY.public.write(tmp_path / "release.pub")
    return folder


@pytest.fixture
def client(adapters: Path, folders: dict[str, Path]) -> Iterator[httpx.Client]:
    key = str(adapters.parent / "release.pub")
    with (
        opened(folders["rows"], adapter_folder=str(adapters), require_signed=(key,)) as state,
        served(state) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
    ):
        yield client


def load(client: httpx.Client, name: str, path: str) -> tuple[int, str]:
    body = {"lora_name": name, "lora_path": path, "load_inplace": True}
    answer = client.post("/v1/load_lora_adapter", json=body, headers=ADMIN)
    return answer.status_code, answer.text


def test_a_signed_release_is_loaded_and_told(client: httpx.Client, adapters: Path) -> None:
    assert load(client, "tone", "tone") == (200, "Success: LoRA adapter 'tone' added successfully.")
    told = {"name": "tone", "version": 3, "signer": KEY.public.keyid}
    models = {model["id"]: model for model in client.get("/v1/models", headers=WEB).json()["data"]}
    assert models["base"]["release"] is None
    assert told.items() <= models["tone"]["release"].items()
    [adapter] = client.get("/v1/adapters", headers=WEB).json()["data"]
    assert adapter["release"] == models["tone"]["release"]
    assert adapter["source"] == "tone/adapter"
    body = {"model": "tone", "prompt": "a", "max_tokens": 1}
    for answer in (
        client.post("/v1/completions", json=body, headers=WEB),
        client.post("/v1/completions", json={**body, "stream": True}, headers=WEB),
        client.get("/v1/models/tone", headers=WEB),
    ):
        assert answer.status_code == 200
        assert answer.headers["x-adapter-release"] == "tone 3"
        assert answer.headers["x-adapter-signer"] == KEY.public.keyid
    base = client.post("/v1/completions", json={**body, "model": "base"}, headers=WEB)
    assert "x-adapter-release" not in base.headers


@pytest.mark.parametrize(
    ("name", "path", "told"),
    [("plain", "plain", "release.json"), ("tone", "forged", "signed by"), ("tone", "tone/adapter", "release.json"),
     ("other", "tone", "signed as tone")],
)  # fmt: skip
def test_everything_else_is_refused_over_http(client: httpx.Client, name: str, path: str, told: str) -> None:
    status, text = load(client, name, path)
    assert status == 400
    assert json.loads(text)["error"]["code"] == "adapter_refused"
    assert told in text
    assert "/tmp" not in text
    assert [model["id"] for model in client.get("/v1/models", headers=WEB).json()["data"]] == ["base"]


def test_the_adapters_of_the_command_line_must_be_signed_too(adapters: Path, folders: dict[str, Path]) -> None:
    key = str(adapters.parent / "release.pub")
    with (
        pytest.raises(AdapterError, match="only signed"),
        opened(folders["rows"], adapters={"plain": adapters / "plain"}, require_signed=(key,)),
    ):
        pass
    with opened(folders["rows"], adapters={"tone": adapters / "tone"}, require_signed=(key,)) as state:
        assert signer(state) == KEY.public.keyid
    with opened(folders["rows"], adapters={"plain": adapters / "plain"}, release_keys=(f"tone={key}",)) as state:
        assert signer(state, "plain") is None


def signer(state: ServiceState, name: str = "tone") -> str | None:
    status = state.store.status(name)
    assert status is not None
    return status.release.signer if status.release else None


def test_a_file_sets_the_keys_and_its_paths_count_from_it(adapters: Path) -> None:
    path = adapters.parent / "serve.toml"
    path.write_text('releases = "releases"\nrequire_signed = ["release.pub"]\nrelease_keys = ["team/*=release.pub"]\n')
    config = read_config(path, {})
    assert config.require_signed == (f"*={adapters.parent / 'release.pub'}",)
    assert config.release_keys == (f"team/*={adapters.parent / 'release.pub'}",)
    assert config.releases == str(adapters.parent / "releases")
    path.write_text("require_signed = 'release.pub'\n")
    with pytest.raises(ConfigError, match="list of keys"):
        read_config(path, {})
    with pytest.raises(ConfigError, match="--require-signed"):
        ServeConfig(releases="releases")
