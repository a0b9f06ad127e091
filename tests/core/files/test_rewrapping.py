"""The key of files at rest is changed: whole files, what is there stays what it was, and a call cut off goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.commands.key import key as command
from fedlora.errors import AtRestError
from fedlora.files.at_rest import key_id_of, read_plain, write_bytes
from fedlora.files.at_rest_key import VARIABLE, WrappingKey, write_new_key
from fedlora.files.rewrapping import rewrapped

from tests.tiny.power import power

NAMES = ("a/x", "a/y", "b")


@pytest.fixture
def folder(key: WrappingKey, tmp_path: Path) -> Path:
    folder = tmp_path / "device"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, path.name, name.encode() * 1000)
        path.chmod(0o600)
    (folder / "plain.json").write_text("{}")
    return folder


def ids(folder: Path) -> set[str]:
    return {key_id_of(folder / name) for name in NAMES}


def test_all_are_under_the_new_key_and_hold_what_they_held(
    folder: Path, key: WrappingKey, other_key: WrappingKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rewrapped([folder], key, other_key) == 3
    assert ids(folder) == {other_key.id.hex()} and (folder / "plain.json").read_text() == "{}"
    assert rewrapped([folder], key, other_key) == 0
    monkeypatch.setenv(VARIABLE, f"file:{tmp_path / 'other.key'}")
    for name in NAMES:
        assert read_plain(folder / name, 1 << 20) == name.encode() * 1000
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_they_are_decrypted(folder: Path, key: WrappingKey) -> None:
    assert rewrapped([folder / "a", folder / "b"], key, None) == 3
    assert [(folder / name).read_bytes() for name in NAMES] == [name.encode() * 1000 for name in NAMES]


def test_a_third_key_and_damage_are_refused(folder: Path, key: WrappingKey, other_key: WrappingKey) -> None:
    with pytest.raises(AtRestError, match=f"under key {key.id.hex()}; expected {other_key.id.hex()}"):
        rewrapped([folder], other_key, None)
    content = bytearray((folder / "b").read_bytes())
    content[-1] ^= 1
    (folder / "b").write_bytes(content)
    with pytest.raises(AtRestError, match="not what was written"):
        rewrapped([folder / "b"], key, other_key)
    assert (folder / "b").read_bytes() == content


def test_whenever_the_power_is_cut_a_further_call_goes_on(
    folder: Path, key: WrappingKey, other_key: WrappingKey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with power(folder) as counted:
        rewrapped([folder], key, other_key)
    for cut_at in range(counted.writes):
        rewrapped([folder], other_key, key)
        with power(folder, cut_at):
            rewrapped([folder], key, other_key)
        assert ids(folder) <= {key.id.hex(), other_key.id.hex()}
        rewrapped([folder], key, other_key)
        assert ids(folder) == {other_key.id.hex()}


def test_the_commands_make_a_key_and_change_it(folder: Path, key: WrappingKey, tmp_path: Path) -> None:
    run = CliRunner()
    (tmp_path / "old").write_text(key.key.hex())
    (tmp_path / "old").chmod(0o600)
    made = run.invoke(command, ["at-rest", str(tmp_path / "new")])
    new = (tmp_path / "new").read_text().strip()
    assert made.exit_code == 0 and new not in made.output and "who loses it" in made.output
    sources = ["--old", f"file:{tmp_path / 'old'}", "--new", f"file:{tmp_path / 'new'}"]
    assert run.invoke(command, ["rewrap", str(folder), *sources]).output == "under the new key: 3\n"
    assert ids(folder) == {WrappingKey(bytes.fromhex(new)).id.hex()}
    both = run.invoke(command, ["rewrap", str(folder), *sources, "--plain"])
    assert "give one of the two" in str(both.exception)
    assert run.invoke(command, ["rewrap", str(folder), "--old", sources[3], "--plain"]).output == "decrypted: 3\n"
    assert write_new_key(tmp_path / "another").id
