"""`fedlora key`: a pair is made, shown and rotated."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fedlora.commands.key import key
from fedlora.errors import ConfigError, FedloraError, IdentityError
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.rotation import read_rotated


def run(*words: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(key, [str(word) for word in words], input=stdin)
    if isinstance(result.exception, FedloraError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_new_pair_is_two_files_and_its_id_is_shown_of_both(tmp_path: Path) -> None:
    private, public = tmp_path / "my.key", tmp_path / "my.key.pub"
    keyid = SigningKey.read(private).public.keyid if run("new", private) else ""
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert PublicKey.read(public).keyid == keyid
    assert run("show", private).output == run("show", public).output == f"key {keyid}\n{public.read_text()}"


def test_a_passphrase_is_asked_for_or_read_from_a_file(tmp_path: Path) -> None:
    run("new", tmp_path / "asked", "--encrypt", stdin="one two\none two\n")
    assert SigningKey.read(tmp_path / "asked", b"one two")
    file = secret(tmp_path / "pass", "one two\nand more\n")
    run("new", tmp_path / "told", "--passphrase-file", file)
    assert SigningKey.read(tmp_path / "told", b"one two")
    shown = run("show", tmp_path / "told", "--passphrase-file", file).stdout
    assert shown == run("show", tmp_path / "told", stdin="one two\n").stdout
    assert shown.endswith((tmp_path / "told.pub").read_text())


def test_a_passphrase_that_others_may_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    file = secret(tmp_path / "pass", "one two\n")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="others may read or write"):
        run("new", tmp_path / "key", "--passphrase-file", file)
    with pytest.raises(ConfigError, match="first line is empty"):
        run("new", tmp_path / "key", "--passphrase-file", secret(tmp_path / "none", "\n"))
    with pytest.raises(ConfigError, match="name a file"):
        run("new", tmp_path / "key", "--passphrase-file", tmp_path / "nowhere")
    assert not (tmp_path / "key").exists()


def test_a_rotated_key_is_signed_by_the_one_before(tmp_path: Path) -> None:
    run("new", tmp_path / "old")
    told = run("rotate", tmp_path / "old", "-o", tmp_path / "new").output
    old, new = (PublicKey.read(tmp_path / f"{name}.pub") for name in ("old", "new"))
    assert read_rotated((tmp_path / "new.rotated.json").read_bytes(), [old]) == new
    assert SigningKey.read(tmp_path / "new").public == new
    assert old.keyid in told
    assert new.keyid in told


def test_nothing_is_written_over(tmp_path: Path) -> None:
    run("new", tmp_path / "old")
    before = (tmp_path / "old").read_bytes()
    for words in (["new", "old"], ["rotate", "old", "-o", "old"]):
        with pytest.raises(FedloraError, match="exists already"):
            run(*[tmp_path / word if word == "old" else word for word in words])
    (tmp_path / "new.rotated.json").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        run("rotate", tmp_path / "old", "-o", tmp_path / "new")
    assert (tmp_path / "old").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_what_is_no_pair_is_told(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("a note")
    for path in (tmp_path / "note", tmp_path / "nowhere", tmp_path):
        with pytest.raises(IdentityError, match=r"expected"):
            run("show", path)
    with pytest.raises(IdentityError, match="expected"):
        run("rotate", tmp_path / "nowhere", "-o", tmp_path / "new")
