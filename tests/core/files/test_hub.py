"""What is downloaded from the hub is of one commit, which the pack records, and no larger than it may be.

The hub is a small one on this machine, over the interface that huggingface_hub speaks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from fedlora.base.pack import open_pack
from fedlora.files import hub as hub_module
from fedlora.files.hub import HubError, HubSilentError, download, listing, split_revision
from fedlora.peft.directory import PeftDirectory, write_peft

from tests.tiny.adapters import random_adapter
from tests.tiny.checkpoints import tiny_pack, write_checkpoint

pytest.importorskip("huggingface_hub")
FIRST, SECOND = "a" * 40, "b" * 40


@contextmanager
def hub(
    commits: dict[str, dict[str, bytes]], names: dict[str, str], sizes: dict[str, int]
) -> Iterator[tuple[str, list[str]]]:
    """A hub of one repository, {commit: {file: content}}, and what it was asked for; `sizes` are told for the true ones."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            if match := re.fullmatch(r"/api/models/someone/it(?:/(revision|tree)/([^/]+))?", path):
                commit = names.get(match[2] or "main", match[2])
                files = commits.get(commit or "", {})
                if not files:
                    self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                    return
                told = {name: sizes.get(name, len(content)) for name, content in files.items()}
                if match[1] == "tree":
                    tree = [
                        {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(files[name]).hexdigest()}
                        for name, size in told.items()
                    ]
                    self.answer(200, json.dumps(tree).encode(), {})
                else:
                    siblings = [{"rfilename": name, "size": size} for name, size in told.items()]
                    about = {"id": "someone/it", "sha": commit, "siblings": siblings, "private": False}
                    self.answer(200, json.dumps(about).encode(), {})
            elif match := re.fullmatch(r"/someone/it/resolve/([^/]+)/(.+)", path):
                commit = names.get(match[1], match[1])
                content = commits.get(commit, {}).get(match[2])
                if content is None:
                    self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                tag = hashlib.sha1(content).hexdigest()
                self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fedlora(endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", "from fedlora.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_is_packed_from_the_commit_that_a_revision_names_which_the_pack_records(tmp_path: Path) -> None:
    commits = {
        FIRST: {**content_of(write_checkpoint(tmp_path / "first")), "pytorch_model.bin": b"pickle"},
        SECOND: content_of(tmp_path / "first"),
    }
    commits[SECOND]["generation_config.json"] = b"{}"
    names = {"main": SECOND, "v1": FIRST}
    local = tiny_pack(tmp_path / "local", tmp_path / "first")
    options = ("--block-size", str(local.quantization.block_size))
    with hub(commits, names, {}) as (endpoint, asked):
        made = fedlora(
            endpoint, tmp_path / "hf", "pack", "someone/it", "-o", str(tmp_path / "p"), "--revision", "v1", *options
        )
        assert made.returncode == 0, made.stderr
        again = fedlora(endpoint, tmp_path / "hf", "pack", "someone/it", "-o", str(tmp_path / "q"), *options)
        assert again.returncode == 0, again.stderr
        none = fedlora(endpoint, tmp_path / "hf", "pack", "someone/it@v9", "-o", str(tmp_path / "r"))
    first, second = open_pack(tmp_path / "p"), open_pack(tmp_path / "q")
    assert (first.revision, second.revision) == (FIRST, SECOND)
    assert (first.source, second.source) == ("someone/it", "someone/it")
    assert first.fingerprint != second.fingerprint
    assert none.returncode != 0
    assert "the hub does not give it" in none.stderr
    assert "Traceback" not in none.stderr
    resolved = [path for path in asked if "/resolve/" in path]
    assert not [path for path in resolved if path.endswith(".bin")]
    assert {path.split("/")[4] for path in resolved} == {FIRST, SECOND}  # by commit, never by a name
    shown = fedlora("http://127.0.0.1:9", tmp_path / "hf", "inspect", str(tmp_path / "p"))
    assert FIRST in shown.stdout
    # The commit says where it came from, not what it is.
    manifest = json.loads((tmp_path / "p" / "base.json").read_text())
    del manifest["revision"]
    (tmp_path / "p" / "base.json").write_text(json.dumps(manifest))
    assert open_pack(tmp_path / "p").fingerprint == first.fingerprint


def test_what_is_too_large_is_refused_before_it_is_downloaded_and_an_adapter_shows_its_commit(tmp_path: Path) -> None:
    base = tiny_pack(tmp_path / "base", write_checkpoint(tmp_path / "checkpoint"))
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    commits = {FIRST: content_of(tmp_path / "adapter")}
    with hub(commits, {"main": FIRST}, {}) as (endpoint, _):
        shown = fedlora(endpoint, tmp_path / "hf", "inspect", "someone/it@main")
        assert FIRST in shown.stdout, shown.stderr
    with hub(commits, {"main": FIRST}, {"adapter_config.json": 1 << 30}) as (endpoint, asked):
        refused = fedlora(endpoint, tmp_path / "other", "inspect", "someone/it")
        assert "adapter_config.json has 1073741824 bytes; at most 4194304 are downloaded" in refused.stderr
        assert not [path for path in asked if "/resolve/" in path]
    offline = fedlora("http://127.0.0.1:9", tmp_path / "hf", "inspect", "someone/it")  # what was downloaded once
    assert FIRST in offline.stdout, offline.stderr


@pytest.mark.parametrize("revision", ["", "../main", "-x", "a b", "a//b", "x" * 200, "main\n"])
def test_a_revision_that_cannot_be_is_refused(revision: str) -> None:
    with pytest.raises(HubError, match="expected a branch, a tag or a commit"):
        listing("someone/it", revision)
    assert split_revision("someone/it@refs/pr/1") == ("someone/it", "refs/pr/1")


WELL: dict[str, object] = {"id": "someone/it", "sha": FIRST, "private": False}
LIES: dict[str, list[dict[str, object]]] = {
    "a size that is text": [{"rfilename": "config.json", "size": "100"}],
    "a size that is a list": [{"rfilename": "config.json", "size": [1]}],
    "a size that is true": [{"rfilename": "config.json", "size": True}],
    "a size below nothing": [{"rfilename": "config.json", "size": -(10**15)}],
    "a size of many digits": [{"rfilename": "config.json", "size": 10**400}],
    "no number": [{"rfilename": "config.json", "size": float("nan")}],
    "no name": [{"rfilename": None, "size": 1}],
    "a name that is a number": [{"rfilename": 7, "size": 1}],
    "an empty name": [{"rfilename": "", "size": 1}],
    "a name that steers a terminal": [{"rfilename": "\x1b[31mconfig.json", "size": 1}],
    "a long name": [{"rfilename": "e" * 5000 + ".json", "size": 1}],
    "half of a letter": [{"rfilename": "\ud800.json", "size": 1}],
}
NO_LISTS: dict[str, object] = {
    "numbers for files": {**WELL, "siblings": [1, 2]},
    "nothing": None,
    "a list": [],
}


@contextmanager
def lying_hub(monkeypatch: pytest.MonkeyPatch, home: Path, answers: list[bytes | None]) -> Iterator[threading.Event]:
    """A hub that says these one after the other, and the last again and again; None: nothing until the event is set."""
    over, left = threading.Event(), list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            about = "/api/models/" in self.path
            if not about and "/resolve/" not in self.path:
                self.send_error(404)
                return
            said = left[0] if about else left[-1]
            if about and "/tree/" in self.path:
                said = json.dumps([{"type": "file", "path": "config.json", "size": 100, "oid": FIRST}]).encode()
            if said is None and self.command != "HEAD":
                over.wait(60)
                return
            said = said or b"x" * 100
            self.send_response(200)
            for name, value in {"ETag": f'"{FIRST}"', "X-Repo-Commit": FIRST, "Content-Length": str(len(said))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client hangs up, as it should
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub_module, "_cache", lambda: home)
    hub_module._listing.cache_clear()
    try:
        yield over
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
        hub_module._listing.cache_clear()


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_hub_that_lies_about_names_and_sizes_is_refused(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [[each["rfilename"], each["size"]] for each in LIES[lie]]
    monkeypatch.setattr(hub_module, "_asked", lambda *_: {"commit": FIRST, "files": files})
    hub_module._listing.cache_clear()
    with pytest.raises(HubError, match=r"it lists .*; expected ") as caught:
        download("someone/it", ["*.json"], None, lambda name: 100)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("what", sorted(NO_LISTS))
def test_a_hub_that_gives_no_list_is_one_that_does_not_answer_and_nothing_is_downloaded(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        lying_hub(monkeypatch, tmp_path, [json.dumps(NO_LISTS[what]).encode(), b"x" * 100]),
        pytest.raises(HubError, match=r"it does not answer \(.*\), and no earlier download has these files"),
    ):
        download("someone/it", ["*.json"], None, lambda name: 100)
    assert not list(tmp_path.rglob("*.json"))


def test_a_file_that_is_not_in_the_list_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lying_hub(monkeypatch, tmp_path, [json.dumps({**WELL, "siblings": None}).encode(), b"x" * 100]):
        try:
            download("someone/it", ["*.json"], None, lambda name: 100)
        except HubError as error:
            assert "config.json" not in str(error)
    assert not list(tmp_path.rglob("config.json"))


def test_a_listing_without_end_takes_no_more_than_its_memory_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_LISTING_MEMORY", 320 << 20)
    with (
        lying_hub(monkeypatch, tmp_path, [b" " * (330 << 20)]),
        pytest.raises(HubSilentError, match=r"it sends what takes more than 320 MB of memory"),
    ):
        hub_module._listing("someone/it", None)
    monkeypatch.setattr(hub_module, "_LISTING_S", 3.0)
    with lying_hub(monkeypatch, tmp_path, [None]), pytest.raises(HubSilentError, match=r"no answer within 3 s"):
        hub_module._listing("someone/it", None)


def test_a_file_that_goes_on_beyond_its_announced_size_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.dumps({**WELL, "siblings": [{"rfilename": "config.json", "size": 100}]}).encode()
    monkeypatch.setattr(hub_module, "_SLACK_BYTES", 1 << 20)
    with (
        lying_hub(monkeypatch, tmp_path, [about, b"x" * (64 << 20)]),
        pytest.raises(HubError, match=r"beyond the size that was announced|more comes than the \d+ bytes"),
    ):
        download("someone/it", ["*.json"], None, lambda name: 100)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 16 << 20


def test_a_download_that_takes_more_than_its_memory_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.dumps({**WELL, "siblings": [{"rfilename": "config.json", "size": 100}]}).encode()
    monkeypatch.setattr(hub_module, "_DOWNLOAD_MEMORY", 64 << 20)  # too little for the library itself
    with lying_hub(monkeypatch, tmp_path, [about, b"x" * 100]), pytest.raises(HubError) as caught:
        download("someone/it", ["*.json"], None, lambda name: 100)
    assert "\n" not in str(caught.value)


def test_a_download_is_by_plain_http_whatever_is_installed() -> None:
    code = "import os; os.environ.update({'HF_HUB_DISABLE_XET': '0'}); from fedlora.files import hub; hub.subprocess.run = "
    code += "lambda *_, env, **__: print(env['HF_HUB_DISABLE_XET']) or exit(); "
    code += "hub._asked({'memory_bytes': 1, 'file_bytes': 1}, None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_file_that_never_comes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.dumps({**WELL, "siblings": [{"rfilename": "config.json", "size": 100}]}).encode()
    monkeypatch.setattr(hub_module, "_QUIET_S", 1.0)
    with (
        lying_hub(monkeypatch, tmp_path, [about, None]),
        pytest.raises(HubError, match=r"less than 65536 bytes came in 1 s"),
    ):
        download("someone/it", ["*.json"], None, lambda name: 100)
