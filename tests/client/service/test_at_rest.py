"""A device that encrypts what it keeps: the key of its device.toml, and a round that leaves nothing plain."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.files import at_rest
from fedlora.files.at_rest import MAGIC
from fedlora.files.at_rest_key import VARIABLE, write_new_key
from fedlora_client.service.check import checked
from fedlora_client.service.config import read_device

from tests.client.service.devices import later, make_device, question
from tests.client.service.test_work import answered


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(at_rest, "_keys", {})


def test_the_key_counts_from_the_file(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    path = config.path
    path.write_text(path.read_text().replace("[device]", '[device]\nat_rest_key = "file:k"'))
    assert read_device(path).device.at_rest_key == f"file:{tmp_path / 'k'}"
    with pytest.raises(ConfigError, match=r"at_rest_key .*cannot be read"):
        list(checked(read_device(path), 16, 2))
    key = write_new_key(tmp_path / "k")
    told = [line for line in checked(read_device(path), 16, 2) if line.startswith("at rest")]
    assert told == [f"at rest: adapters, kept factors and states of trainings are encrypted, under key {key.id.hex()}"]


def test_a_round_leaves_no_adapter_plain_and_is_answered_again(
    tmp_path: Path, base: BasePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_new_key(tmp_path / "k")
    monkeypatch.setenv(VARIABLE, f"file:{tmp_path / 'k'}")
    config = make_device(tmp_path, base, "[serve]\non_commit = ['true']\n")
    asked = question(base)
    first = answered(config, asked)
    assert first.said == "" and not answered(config, question(base, "evaluate")).said
    kept = [path for path in config.state.rglob("*") if path.suffix == ".safetensors" or path.name == "answer"]
    assert {path.name for path in kept} >= {"answer", "adapter_model.safetensors"}
    assert [path for path in kept if not path.read_bytes().startswith(MAGIC)] == []
    again = later(asked, seconds=1.0)  # what was kept: there is no time to train
    assert bytes(answered(config, again).data) == bytes(first.data)
