"""A device that has a key encrypts what it takes, once it is verified; it is served, tried and gone back to as ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fedlora.errors import ReleaseError
from fedlora.files.at_rest import MAGIC, key_id_of, written_plain
from fedlora.files.at_rest_key import VARIABLE, WrappingKey
from fedlora.release.folder import read_adapter_release
from fedlora.release.installed import version_folder
from fedlora_serve.adapters.loading import load_adapter

from tests.client.updating.conftest import KEY, Fleet
from tests.tiny.power import power

WEIGHTS = "adapter/adapter_model.safetensors"


def in_use(fleet: Fleet) -> Path:
    current = fleet.installed.current
    assert current is not None
    return version_folder(fleet.settings.place, current)


def test_it_lies_encrypted_and_is_what_was_signed(
    fleet: Fleet, at_rest_key: WrappingKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with written_plain():
        made = fleet.publish(1)
    assert not (made / WEIGHTS).read_bytes().startswith(MAGIC)
    assert fleet.update().result == "installed"
    folder = in_use(fleet)
    assert key_id_of(folder / WEIGHTS) == at_rest_key.id.hex()
    release = read_adapter_release(folder, [KEY.public])
    assert load_adapter(folder / "adapter", fleet.base).digest == release.manifest.adapter.values_sha256
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[200] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ReleaseError, match="not what was written"):
        read_adapter_release(folder, [KEY.public])
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ReleaseError, match="and there is none"):
        read_adapter_release(folder, [KEY.public])


def test_whenever_the_power_is_cut_the_version_is_whole(
    fleet: Fleet, at_rest_key: WrappingKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with written_plain():
        fleet.publish(1)
    with power(fleet.settings.folder) as counted:
        fleet.update()
    for cut_at in range(0, counted.writes, 2):
        shutil.rmtree(fleet.settings.folder)
        with power(fleet.settings.folder, cut_at):
            fleet.update()
        assert fleet.update().result in ("installed", "unchanged")
        read_adapter_release(in_use(fleet), [KEY.public])
        assert key_id_of(in_use(fleet) / WEIGHTS) == at_rest_key.id.hex()
