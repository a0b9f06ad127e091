"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fedlora.errors import ConfigError
from fedlora.files.atomic import whole_directory, whole_file, write_text

from tests.tiny.checkpoints import tree


class Crash(Exception):  # noqa: N818
    """What the writer of a test dies of."""


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x") as aside:
        aside.write_text("new")
        assert not (tmp_path / "x").exists()
        assert aside.parent == tmp_path
    assert tree(tmp_path) == {"x": b"new"}


def test_what_appears_is_on_the_disk_before_and_its_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[str]()
    replace = os.replace

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append("the folder" if path == tmp_path else path.read_text() if path.is_file() else path.name)

    def renamed(old: str | Path, new: str | Path) -> None:
        done.append("renamed")
        replace(old, new)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", renamed)
    with whole_file(tmp_path / "x") as aside:
        aside.write_text("new")
    assert done == ["new", "renamed", "the folder"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old and longer")
    write_text(tmp_path / "x", "new é")
    assert tree(tmp_path) == {"x": "new é".encode()}


@pytest.mark.parametrize("before", [{}, {"x": b"old"}])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, before: dict[str, bytes]) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Crash), whole_file(tmp_path / "x") as aside:
        aside.write_text("half")
        raise Crash
    assert tree(tmp_path) == before


def test_a_directory_appears_when_its_block_ends(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "d") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "x").write_text("new")
        assert not (tmp_path / "d").exists()
    assert tree(tmp_path) == {"d": None, "d/sub": None, "d/sub/x": b"new"}


def test_a_directory_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Crash), whole_directory(tmp_path / "d") as aside:
        (aside / "x").write_text("half")
        raise Crash
    assert tree(tmp_path) == {}


def test_a_directory_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("old")
    with (
        pytest.raises(ConfigError, match=r"d exists already; name another output, or pass --force"),
        whole_directory(tmp_path / "d"),
    ):
        raise AssertionError("the block must not run")
    assert tree(tmp_path) == {"d": None, "d/x": b"old"}


def test_a_directory_is_replaced_with_nothing_of_the_old_left(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    with whole_directory(tmp_path / "d", replace="old") as aside:
        (aside / "new").write_text("new")
    assert tree(tmp_path) == {"d": None, "d/new": b"new"}


def test_a_replacing_block_that_fails_leaves_the_old_directory(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    with pytest.raises(Crash), whole_directory(tmp_path / "d", replace="old") as aside:
        (aside / "new").write_text("new")
        raise Crash
    assert tree(tmp_path) == {"d": None, "d/old": b"old"}


def test_a_replacement_that_cannot_take_its_place_leaves_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"), whole_directory(tmp_path / "d", replace="old") as aside:
        (aside / "new").write_text("new")
    assert tree(tmp_path) == {"d": None, "d/old": b"old"}


def test_a_directory_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("ten years of work")
    with (
        pytest.raises(ConfigError, match=r"holds no base\.json: only its own kind is replaced"),
        whole_directory(tmp_path / "home", replace="base.json"),
    ):
        pass
    assert tree(tmp_path) == {"home": None, "home/thesis": b"ten years of work"}


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "x", "1")
    with whole_directory(tmp_path / "c" / "d"):
        pass
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/x": b"1", "c": None, "c/d": None}


def test_a_result_is_for_whoever_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "1")
        with whole_directory(tmp_path / "d"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


def test_a_relative_directory_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with whole_directory(Path("d")) as aside:
        (aside / "x").write_text("1")
        os.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "d" / "x").read_text() == "1"


@pytest.mark.parametrize("how", ["no rename goes any more", "an interrupt between the two renames"])
def test_an_old_directory_is_never_lost_between_the_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    target, rename, renamed = tmp_path / "out", Path.rename, list[str]()
    target.mkdir()
    (target / "kind").write_text("old")

    def failing(source: Path, other: Path) -> Path:
        renamed.append(source.name)
        if how.startswith("no"):
            if len(renamed) > 1:
                raise OSError(errno.EROFS, "Read-only file system")
            return rename(source, other)
        done = rename(source, other)
        if len(renamed) == 1:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with (
            pytest.raises((OSError, KeyboardInterrupt)),
            whole_directory(target, replace="kind") as aside,
        ):
            (aside / "kind").write_text("new")
    assert renamed[0] == "out"
    with whole_file(tmp_path / "another"):  # whoever writes there next puts it back
        pass
    assert (target / "kind").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "out"]
