"""Adapters that are encrypted where they lie are served as plain ones are, and by their digest they are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError
from fedlora.files.at_rest import MAGIC
from fedlora.files.at_rest_key import VARIABLE, WrappingKey
from fedlora.peft.directory import WEIGHTS, PeftDirectory, read_peft, write_peft
from fedlora_export.adapter_export import export_peft
from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.http.service.adapter_folder import AdapterFolder

from tests.tiny.adapters import ALL_RANKS, random_adapter


def write(folder: Path, base: BasePack) -> tuple[Path, Path]:
    """The same adapter as PEFT's directory, and as a file for ONNX Runtime."""
    adapter = random_adapter(base, ALL_RANKS)
    write_peft(folder / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    export_peft(folder / "adapter", folder / "a.onnx_adapter", base)
    return folder / "adapter", folder / "a.onnx_adapter"


@pytest.fixture
def encrypted(base: BasePack, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    write(tmp_path / "plain", base)
    request.getfixturevalue("at_rest_key")
    return write(tmp_path / "encrypted", base)


def test_both_kinds_are_encrypted_and_loaded_as_the_plain_ones(
    base: BasePack, tmp_path: Path, encrypted: tuple[Path, Path]
) -> None:
    directory, file = encrypted
    for path in (directory / WEIGHTS, file):
        assert path.read_bytes().startswith(MAGIC)
    digests = {
        load_adapter(path, base).digest
        for path in (*encrypted, tmp_path / "plain/adapter", tmp_path / "plain/a.onnx_adapter")
    }
    assert len(digests) == 1
    manifests = [(tmp_path / kind / "a.onnx_adapter.json").read_text() for kind in ("plain", "encrypted")]
    assert manifests[0] == manifests[1]
    assert read_peft(directory).config == read_peft(tmp_path / "plain/adapter").config


def test_they_are_loaded_over_http_too(base: BasePack, tmp_path: Path, encrypted: tuple[Path, Path]) -> None:
    folder = AdapterFolder(tmp_path)
    try:
        for path in ("encrypted/adapter", "encrypted/a.onnx_adapter"):
            assert load_adapter(folder.copy(path), base).digest == load_adapter(tmp_path / "plain/adapter", base).digest
    finally:
        folder.close()


def test_what_was_changed_or_has_no_key_is_no_adapter(
    base: BasePack, encrypted: tuple[Path, Path], at_rest_key: WrappingKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, weights in zip(encrypted, (encrypted[0] / WEIGHTS, encrypted[1]), strict=True):
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(AdapterError, match="not what was written"):
            load_adapter(path, base)
        weights.write_bytes(whole)
    monkeypatch.delenv(VARIABLE)
    for path in encrypted:
        with pytest.raises(AdapterError, match=f"under key {at_rest_key.id.hex()}, and there is none"):
            load_adapter(path, base)
