"""What killed processes leave is taken away by the next one; what a living one holds is not, and nothing of others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedlora.files import temporary
from fedlora.files.atomic import whole_directory, write_text
from fedlora.files.temporary import OwnFolder, clear_leftovers, own_folder

from tests.tiny.checkpoints import tree

# Each makes something in the folder that it is given, says so, and waits.
WORK = {
    "file": "with whole_file(here / 'x') as aside: aside.write_text('half'); Path(f'{aside}.o').write_text('more'); wait()",
    "directory": "with whole_directory(here / 'd', replace='k') as aside: (aside / 'x').write_text('half'); wait()",
    "folder": "OwnFolder('test', here); f = OwnFolder('adapters'); (f.path / 'x').write_text('copy'); wait()",
    "replacing": """
import os
from unittest.mock import patch
rename = Path.rename
def then_wait(self, target):
    rename(self, target)
    wait()
with patch.object(Path, 'rename', then_wait), whole_directory(here / 'd', replace='k') as aside:
    (aside / 'k').write_text('new')
""",
}
CODE = """
import sys, time
from pathlib import Path
from fedlora.files.atomic import whole_directory, whole_file
from fedlora.files.temporary import OwnFolder
here = Path(sys.argv[1])
def wait():
    print('there', flush=True)
    time.sleep(60)
"""


@contextmanager
def at_work(kind: str, here: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the midst of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE + WORK[kind], str(here)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(here)},
    )  # fmt: skip
    assert process.stdout
    try:
        assert process.stdout.readline() == "there\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked through by this process is looked through again."""
    monkeypatch.setattr(temporary, "_cleared", set())


def looked_through(here: Path) -> dict[str, bytes | None]:
    temporary._cleared.clear()
    clear_leftovers(here)
    return tree(here)


@pytest.mark.parametrize("kind", ["file", "directory", "folder"])
def test_what_is_left_after_a_kill_is_taken_away_by_the_next_process_and_not_before(tmp_path: Path, kind: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "k").write_text("old")
    mine = tree(tmp_path)
    with at_work(kind, tmp_path) as process:
        during = tree(tmp_path)
        assert len(during) > len(mine)
        assert looked_through(tmp_path) == during
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert tree(tmp_path) == during
        assert looked_through(tmp_path) == mine


def test_of_two_processes_at_work_the_one_that_lives_keeps_its_own(tmp_path: Path) -> None:
    with at_work("directory", tmp_path) as living:
        alone = tree(tmp_path)
        with at_work("directory", tmp_path) as killed:
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
        write_text(tmp_path / "x", "the next one")
        assert tree(tmp_path) == {**alone, "x": b"the next one"}
        assert living.poll() is None


@pytest.mark.parametrize("goes_on", ["here", "elsewhere"])
def test_a_directory_that_was_to_be_replaced_is_put_back(tmp_path: Path, goes_on: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "k").write_text("old")
    with at_work("replacing", tmp_path) as process:
        assert not (tmp_path / "d").exists()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    if goes_on == "elsewhere":
        write_text(tmp_path / "x", "")
        (tmp_path / "x").unlink()
        assert tree(tmp_path) == {"d": None, "d/k": b"old"}
    with whole_directory(tmp_path / "d", replace="k") as aside:
        assert (tmp_path / "d" / "k").read_text() == "old"
        (aside / "k").write_text("newer")
    assert tree(tmp_path) == {"d": None, "d/k": b"newer"}


def test_only_what_is_named_and_held_as_ours_is_taken_away(tmp_path: Path) -> None:
    """Names alone, links in the place of a lock or of what it locks, and other machines' are left."""
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter").write_text("years")
    stem = f".x.temp-{temporary._MACHINE}-"
    (tmp_path / f"{stem}aaaaaaaa").mkdir()  # without a lock
    (tmp_path / f"{stem}bbbbbbbb.lock").symlink_to(target / "chapter")
    (tmp_path / f"{stem}bbbbbbbb").mkdir()
    (tmp_path / f"{stem}cccccccc.lock").write_text("not empty")
    (tmp_path / f"{stem}cccccccc").mkdir()
    (tmp_path / f"{stem}dddddddd.lock").touch()
    os.link(tmp_path / f"{stem}dddddddd.lock", tmp_path / "second-name")
    os.mkfifo(tmp_path / f"{stem}ffffffff.lock")
    (tmp_path / ".x.temp-00000000-gggggggg.lock").touch()  # another machine's
    before = looked_through_names(tmp_path)
    (tmp_path / f"{stem}eeeeeeee.lock").touch()
    (tmp_path / f"{stem}eeeeeeee").symlink_to(target)
    clear_leftovers(tmp_path)
    assert looked_through_names(tmp_path) == before
    assert (target / "chapter").read_text() == "years"


def looked_through_names(here: Path) -> set[str]:
    return {entry.name for entry in here.iterdir()}


def test_where_anybody_may_write_nothing_is_taken_away(tmp_path: Path) -> None:
    lock = tmp_path / f".x.temp-{temporary._MACHINE}-aaaaaaaa.lock"
    lock.touch()
    tmp_path.chmod(0o777)
    assert lock.name in looked_through(tmp_path)
    tmp_path.chmod(0o1777)
    assert looked_through(tmp_path) == {}


def test_a_folder_of_ones_own_is_for_its_user_alone_and_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with own_folder("test") as folder:
        assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
        (folder / "x").write_text("1")
    assert tree(tmp_path) == {}
    folder_of_a_service = OwnFolder("test")
    assert len(tree(tmp_path)) == 2
    if (child := os.fork()) == 0:  # its end is not the end of its parent's folder
        folder_of_a_service.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder_of_a_service.path.is_dir()
    del folder_of_a_service
    assert tree(tmp_path) == {}
