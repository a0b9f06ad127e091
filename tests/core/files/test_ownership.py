"""A secret that others may read or write is refused, with the command that closes it; so is a folder open to all."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from fedlora.errors import ConfigError
from fedlora.files.ownership import check_own_folder, read_secret


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "a key"
    path.write_text("secret")
    path.chmod(0o600)
    return path


def owned(monkeypatch: pytest.MonkeyPatch, *, us: int, owner: int) -> None:
    """As if this process were of user `us`, and every file of `owner`."""
    fstat = os.fstat

    def of_owner(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        return os.stat_result([*status[:4], owner, *status[5:]])

    monkeypatch.setattr(os, "getuid", lambda: us)
    monkeypatch.setattr(os, "fstat", of_owner)


@pytest.mark.parametrize(("us", "owner"), [(1000, 1000), (1000, 0), (0, 0), (1000, 1001), (0, 1000)])
def test_whose_file_of_which_mode_is_read(key: Path, monkeypatch: pytest.MonkeyPatch, us: int, owner: int) -> None:
    """Ours with no bit for others; root's with at most a reading group. Nobody executes a key."""
    owned(monkeypatch, us=us, owner=owner)
    for mode in (
        0o400 | write | group | others for write in (0, 0o200) for group in (0, 32, 16) for others in (0, 4, 2)
    ):
        key.chmod(mode)
        if (owner == us and not mode & 0o077) or (owner == 0 and not mode & 0o027):
            assert read_secret(key, 100, "serve.toml: the key") == b"secret"
            continue
        with pytest.raises(ConfigError) as told:
            read_secret(key, 100, "serve.toml: the key")
        said = str(told.value)
        assert said.startswith(f"serve.toml: the key: {key}: ")
        assert "secret" not in said.replace(str(key), "")
        assert ("chown" if owner not in (us, 0) else "chmod 600" if owner == us else "chmod 640") in said


def test_the_command_of_the_refusal_closes_it(key: Path) -> None:
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644.*chmod 600") as told:
        read_secret(key, 100, "x")
    command = str(told.value).split("close it with: ")[1].split(",")[0]
    subprocess.run(shlex.split(command), check=True)
    assert read_secret(key, 100, "x") == b"secret"


def test_a_secret_is_found_where_links_lead_as_in_a_mounted_volume(tmp_path: Path) -> None:
    version = tmp_path / "..2026_11_30"
    version.mkdir()
    (version / "web.key").write_text("mounted")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "web.key").symlink_to("..data/web.key")
    (version / "web.key").chmod(0o400)
    assert read_secret(tmp_path / "web.key", 100, "x") == b"mounted"
    (version / "web.key").chmod(0o444)
    with pytest.raises(ConfigError, match="others may read or write it"):
        read_secret(tmp_path / "web.key", 100, "x")


def test_what_is_no_secret_is_no_secret(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 42)
    (tmp_path / "hole").chmod(0o600)
    for name in ("pipe", "zero", "loop", "hole", "none", "."):
        with pytest.raises(OSError):
            read_secret(tmp_path / name, 100, "x")


def test_a_folder_that_every_user_may_write_into_is_refused(tmp_path: Path) -> None:
    for mode in (0o777, 0o1777, 0o702):
        tmp_path.chmod(mode)
        with pytest.raises(ConfigError, match=rf"state-path .*\(mode {mode:04o}\).*chmod o-w"):
            check_own_folder(tmp_path, "state-path")
    for mode in (0o700, 0o775, 0o2775):
        tmp_path.chmod(mode)
        check_own_folder(tmp_path, "state-path")
    check_own_folder(tmp_path / "none", "state-path")
