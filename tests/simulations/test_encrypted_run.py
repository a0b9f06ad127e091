"""A run whose adapters are encrypted where they lie: it is verified, goes on and is released as any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, IdentityError, RunError
from fedlora.files.at_rest import MAGIC, key_id_of
from fedlora.files.at_rest_key import VARIABLE, WrappingKey, read_key, write_new_key
from fedlora.files.rewrapping import rewrapped
from fedlora.identity.audit import audited
from fedlora.identity.keys import SigningKey
from fedlora.peft.directory import read_peft
from fedlora.release.folder import read_release
from fedlora_serve.adapters.loading import load_adapter
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory
from fedlora_simulations.releasing import ReleaseOrder, make_release

from tests.tiny.adapters import random_adapter
from tests.tiny.power import power
from tests.tiny.releases import committed_run

KEY = SigningKey.generate()
WEIGHTS = "rounds/0002/adapter/adapter_model.safetensors"


@pytest.fixture
def plain(base: BasePack, tmp_path: Path) -> Path:
    return committed_run(tmp_path / "plain", base)


@pytest.fixture
def run(plain: Path, at_rest_key: WrappingKey, base: BasePack, tmp_path: Path) -> Path:
    return committed_run(tmp_path / "run", base)


def test_what_it_committed_is_encrypted_and_named_as_that_of_a_plain_one(run: Path, plain: Path) -> None:
    assert (run / WEIGHTS).read_bytes().startswith(MAGIC) and not (plain / WEIGHTS).read_bytes().startswith(MAGIC)
    for number in ("0001", "0002"):
        seals = [json.loads((folder / "rounds" / number / "sealed.json").read_text()) for folder in (run, plain)]
        assert seals[0] == seals[1]
    assert list(audited(run)) != [] and list(audited(plain)) != []  # with a key plain ones are read as well


def test_its_moments_are_encrypted_too_and_read_back(run: Path, base: BasePack) -> None:
    first = random_adapter(base)
    moments = {"m": np.arange(6, dtype=np.float32).reshape(2, 3)}
    directory = RunDirectory(run, base)
    directory.commit(random_adapter(base, seed=3), moments, RoundRecord(3))
    path = run / "rounds/0003/moments.safetensors"
    assert path.read_bytes().startswith(MAGIC)
    adapter, found = directory.read(3, first)
    assert np.array_equal(found["m"], moments["m"])
    module = next(iter(adapter.pairs))
    assert np.array_equal(adapter.pairs[module].lora_B, random_adapter(base, seed=3).pairs[module].lora_B)


def test_a_bit_that_changes_is_found(run: Path, base: BasePack) -> None:
    content = bytearray((run / WEIGHTS).read_bytes())
    content[-20] ^= 4
    (run / WEIGHTS).write_bytes(content)
    with pytest.raises(IdentityError, match="not what was written"):
        list(audited(run))
    with pytest.raises(AdapterError, match="not what was written"):
        read_peft((run / WEIGHTS).parent)


def test_another_rounds_file_under_the_same_key_and_name_is_found_by_the_records(run: Path, base: BasePack) -> None:
    (run / WEIGHTS).write_bytes((run / WEIGHTS.replace("0002", "0001")).read_bytes())
    read_peft((run / WEIGHTS).parent)  # by itself it is sound
    with pytest.raises(IdentityError, match="not as it was committed"):
        list(audited(run))
    with pytest.raises(RunError, match="not as it was committed"):
        RunDirectory(run, base).read(2, random_adapter(base))


def test_without_the_key_it_says_which(run: Path, at_rest_key: WrappingKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(IdentityError, match=f"under key {at_rest_key.id.hex()}, and there is none"):
        list(audited(run))


def test_its_key_is_changed_without_its_records(
    run: Path, base: BasePack, at_rest_key: WrappingKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = write_new_key(tmp_path / "new")
    assert rewrapped([run], at_rest_key, new) == 2
    monkeypatch.setenv(VARIABLE, f"file:{tmp_path / 'new'}")
    assert read_key(f"file:{tmp_path / 'new'}") == new
    assert any(line.startswith("round 2: record") for line in audited(run))
    RunDirectory(run, base).read(2, random_adapter(base))


def test_a_release_of_it_is_plain(run: Path, base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_release(ReleaseOrder(run=run, round=2, profiles=("compat",)), tmp_path / "out", KEY)
    monkeypatch.delenv(VARIABLE)
    release = read_release(tmp_path / "out", [KEY.public])
    for path in release.manifest.files:
        assert not (tmp_path / "out" / path).read_bytes().startswith(MAGIC), path
    for path in ("adapter", "compat.onnx_adapter"):
        assert load_adapter(tmp_path / "out" / path, base).digest == release.manifest.adapter.values_sha256


def test_whenever_the_power_is_cut_a_round_is_there_whole_or_not_at_all(
    run: Path, base: BasePack, at_rest_key: WrappingKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, first = run / "rounds", random_adapter(base)

    def commit(number: int) -> None:
        RunDirectory(run, base).commit(random_adapter(base, seed=number), {}, RoundRecord(number))

    with power(rounds) as counted:
        commit(3)
    number = 3
    for cut_at in range(counted.writes):
        with power(rounds, cut_at):
            commit(number + 1)
        if (rounds / f"{number + 1:04d}").exists():
            number += 1
            RunDirectory(run, base).read(number, first)
            assert key_id_of(rounds / f"{number:04d}" / "adapter/adapter_model.safetensors") == at_rest_key.id.hex()
    commit(number + 1)
