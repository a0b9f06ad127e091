"""One process at a time holds a file, whatever becomes of the one before."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fedlora.files.lock_file import hold

HOLDER = "import sys, time; from pathlib import Path; from fedlora.files.lock_file import hold\n" + (
    "held = hold(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
)


def test_a_file_is_held_by_one_and_then_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path), pytest.raises(BlockingIOError):
        hold(path)
    with hold(path):
        assert path.read_bytes() == b""


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(BlockingIOError):
            hold(path)
        process.kill()
    hold(path).close()


def test_who_waits_has_it_when_the_other_lets_go(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()

    def wait() -> None:
        with hold(path, waits=True):
            order.append("second")

    with hold(path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_of_ours_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "link":
        path.symlink_to(tmp_path / "another")
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match=r"symbolic links|No such device"):
        hold(path)
    assert not (tmp_path / "another").exists()


def test_where_there_are_no_locks_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockless(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", lockless)
    with hold(tmp_path / "lock"), hold(tmp_path / "lock"):
        assert f"{tmp_path / 'lock'} cannot be locked (No locks available): let no second" in caplog.text
