"""A store that takes signed releases alone: by key, by name, by content; also what is read again after an eviction."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, ConfigError, IdentityError
from fedlora.identity.keys import SigningKey
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_serve.adapters import store as store_module
from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.adapters.signed import SignedNames, read_signed_names
from fedlora_serve.adapters.store import AdapterStore

from tests.tiny.adapters import random_adapter
from tests.tiny.releases import write_release

OURS, THEIRS = SigningKey.generate(), SigningKey.generate()
BOTH = SignedNames([("*", OURS.public), ("team/*", THEIRS.public)], all_must_be=True)


def a_store(base: BasePack, signed: SignedNames | None, **more: int) -> AdapterStore:
    return AdapterStore(base, budget_bytes=more.get("budget", 64 << 20), signed=signed)


def unsigned(base: BasePack, folder: Path) -> Path:
    write_peft(folder, PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    return folder


def test_a_release_is_loaded_with_what_vouches_for_it(base: BasePack, tmp_path: Path) -> None:
    manifest = write_release(tmp_path / "r", base, OURS)
    store = a_store(base, BOTH)
    version = store.load("tone", tmp_path / "r")
    assert version.release is not None
    assert (version.release.name, version.release.version) == ("tone", 3)
    assert version.release.signer == OURS.public.keyid
    assert version.digest == manifest.adapter.values_sha256
    status = store.status("tone")
    assert status is not None
    assert status.release == version.release
    lease = store.lease("tone")
    assert lease.version.release == version.release
    lease.release()


def test_a_new_version_with_the_same_values_tells_the_new_release(base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "3", base, OURS)
    write_release(tmp_path / "4", base, OURS, version=4)
    store = a_store(base, BOTH)
    first, second = store.load("tone", tmp_path / "3"), store.load("tone", tmp_path / "4")
    assert first.digest == second.digest
    assert second.release is not None
    assert second.release.version == 4


@pytest.mark.parametrize(
    ("name", "key", "told"),
    [("tone", THEIRS, "signed by"), ("team/tone", THEIRS, ""), ("team/tone", OURS, ""), ("other", OURS, "signed as tone"),
     ("tone2", OURS, "signed as tone")],
)  # fmt: skip
def test_a_name_has_its_keys_and_is_the_one_that_was_signed(
    base: BasePack, tmp_path: Path, name: str, key: SigningKey, told: str
) -> None:
    write_release(tmp_path / "r", base, key)
    store = a_store(base, BOTH)
    if not told:
        assert store.load(name, tmp_path / "r").release is not None
        return
    with pytest.raises(AdapterError, match=told):
        store.load(name, tmp_path / "r")
    assert store.list() == ()


def exchanged(folder: Path) -> None:
    shutil.copy(folder.parent / "other" / "adapter" / "adapter_model.safetensors", folder / "adapter")


def beside(folder: Path) -> None:
    (folder / "adapter" / "chat_template.jinja").write_text("{{ 1 }}")


def linked(folder: Path) -> None:
    (folder / "adapter").rename(folder.parent / "elsewhere")
    (folder / "adapter").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("spoil", [exchanged, beside, linked], ids=lambda spoil: spoil.__name__)
def test_what_is_not_as_it_was_signed_is_refused(base: BasePack, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    write_release(tmp_path / "other", base, OURS, seed=2)
    write_release(tmp_path / "r", base, OURS)
    spoil(tmp_path / "r")
    with pytest.raises(AdapterError, match="only signed releases"):
        a_store(base, BOTH).load("tone", tmp_path / "r")


def test_an_adapter_without_a_signature_is_refused_and_one_that_needs_none_is_not(
    base: BasePack, tmp_path: Path
) -> None:
    plain = unsigned(base, tmp_path / "plain")
    with pytest.raises(AdapterError, match=r"release\.json: cannot be read"):
        a_store(base, BOTH).load("tone", plain)
    one = SignedNames([("tone", OURS.public)])
    store = a_store(base, one)
    assert store.load("federated", plain).release is None
    with pytest.raises(AdapterError, match="only signed releases"):
        store.load("tone", plain)
    strict = SignedNames([("tone", OURS.public)], all_must_be=True)
    with pytest.raises(AdapterError, match="no release key is for this name"):
        a_store(base, strict).load("federated", plain)


def test_values_that_change_between_the_check_and_the_reading_are_refused(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(tmp_path / "r", base, OURS)
    write_release(tmp_path / "other", base, OURS, seed=2)
    store = AdapterStore(
        base, budget_bytes=64 << 20, signed=BOTH,
        read=lambda path, base, **bounds: load_adapter(tmp_path / "other" / "adapter", base, **bounds),
    )  # fmt: skip
    with pytest.raises(AdapterError, match="as they were signed"):
        store.load("tone", tmp_path / "r")
    assert store_module.AdapterStore is AdapterStore


def test_what_was_evicted_is_read_again_as_it_was_signed(base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, OURS)
    write_release(tmp_path / "s", base, OURS, seed=2, name="other")
    size = a_store(base, BOTH).load("tone", tmp_path / "r").size_bytes
    store = a_store(base, BOTH, budget=size + size // 2)
    store.load("tone", tmp_path / "r")
    store.load("other", tmp_path / "s")
    lease = store.lease("tone")
    assert lease.version.release is not None
    lease.release()
    store.lease("other").release()
    exchanged_file = tmp_path / "s" / "adapter" / "adapter_model.safetensors"
    shutil.copy(exchanged_file, tmp_path / "r" / "adapter")
    with pytest.raises(AdapterError, match="changed since it was loaded"):
        store.lease("tone")


def test_keys_are_read_from_what_the_command_line_says(tmp_path: Path) -> None:
    OURS.public.write(tmp_path / "ours.pub")
    assert read_signed_names([], []) is None
    names = read_signed_names([f"team/*={tmp_path / 'ours.pub'}"], [])
    assert names is not None
    assert names.covers("team/x") and not names.covers("x")
    everything = read_signed_names([], [str(tmp_path / "ours.pub")])
    assert everything is not None and everything.covers("x")
    with pytest.raises(IdentityError, match="cannot be read"):
        read_signed_names(["nowhere.pub"], [])
    with pytest.raises(ConfigError, match="PATTERN"):
        read_signed_names(["tone="], [])
