"""The canary in a process of its own, and a server that is watched by its lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.release.canary import Canary, CanaryText
from fedlora.release.serving import TOLD, Served, is_served, read_served, serving, tell_served
from fedlora_client.updating.trial import canary_fails, server_fails
from fedlora_export.export import export_base

from tests.client.updating.conftest import KEY
from tests.tiny.releases import write_release

_SERVER = """
import sys, time
from pathlib import Path
from fedlora.release.serving import Served, serving, tell_served
with serving(Path(sys.argv[1])) as server:
    tell_served(Path(sys.argv[1]) / "tone", Served(server=server, folder="2-aaaa"))
    time.sleep(60)
"""


@contextmanager
def a_server(releases: Path) -> Iterator[int]:
    """A process that serves version 2, and its number."""
    (releases / "tone").mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(releases)])
    try:
        while read_served(releases / "tone") is None:
            time.sleep(0.02)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_where_no_server_is_nothing_can_die(tmp_path: Path) -> None:
    assert server_fails(tmp_path, "tone", "2-aaaa", 60.0) == ""
    assert not is_served(tmp_path)


def test_a_server_that_lives_and_one_that_is_killed(tmp_path: Path) -> None:
    with a_server(tmp_path) as pid:
        assert is_served(tmp_path)
        with pytest.raises(ConfigError, match="another service"), serving(tmp_path):
            pass
        assert server_fails(tmp_path, "tone", "2-aaaa", 0.3) == ""
        assert "did not load" in server_fails(tmp_path, "tone", "3-bbbb", 0.3, load_s=0.3)
        threading.Timer(0.4, os.kill, (pid, signal.SIGKILL)).start()
        assert "died within 30 s" in server_fails(tmp_path, "tone", "2-aaaa", 30.0)
    assert not is_served(tmp_path)


def test_one_that_is_started_again_at_once_has_died_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "tone").mkdir()
    with serving(tmp_path) as server:
        tell_served(tmp_path / "tone", Served(server=server, folder="2-aaaa"))
        again = Served(server="another", folder="2-aaaa")
        threading.Timer(0.3, tell_served, (tmp_path / "tone", again)).start()
        assert "died within" in server_fails(tmp_path, "tone", "2-aaaa", 30.0)


def test_a_server_that_does_not_load_the_version_says_why(tmp_path: Path) -> None:
    (tmp_path / "tone").mkdir()
    with serving(tmp_path) as server:
        tell_served(tmp_path / "tone", Served(server=server, folder="2-aaaa", error="no room"))
        assert server_fails(tmp_path, "tone", "2-aaaa", 30.0) == "the server does not load it: no room"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"server": 1, "folder": "", "error": ""}'])
def test_what_a_server_says_is_checked(tmp_path: Path, content: str) -> None:
    (tmp_path / TOLD).write_text(content)
    assert read_served(tmp_path) is None


def test_a_canary_is_tried_by_the_engine_that_serves(base: BasePack, tmp_path: Path) -> None:
    export_base(base, tmp_path / "model")
    KEY.public.write(tmp_path / "release.pub")
    told = {}
    for name, most in (("good", 99.0), ("bad", 0.001)):
        write_release(tmp_path / name, base, KEY, canary=Canary(texts=(CanaryText(text="The kitchen", max_loss=most),)))
        told[name] = canary_fails(tmp_path / name, str(tmp_path / "model"), (tmp_path / "release.pub",))
    assert told["good"] == ""
    assert "0 of 1 text as" in told["bad"] and "at most 0.001" in told["bad"]
    assert "could not be tried" in canary_fails(
        tmp_path / "good", str(tmp_path / "nowhere"), (tmp_path / "release.pub",)
    )
    assert "more than 0.01 s" in canary_fails(
        tmp_path / "good", str(tmp_path / "model"), (tmp_path / "release.pub",), timeout_s=0.01
    )
    assert json.loads(json.dumps(told)) == told
