"""A committed adapter goes into a service or a command; what goes wrong there is told, and costs no round."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.state import StateFolder
from fedlora_client.supervision.publishing import Publisher, admin_key_of

from tests.client.service.devices import make_device
from tests.client.supervision.test_children import until


@contextmanager
def listening(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A service that takes note of what it is asked to load."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"said so")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def device(tmp_path: Path, base: BasePack) -> DeviceConfig:
    config = make_device(tmp_path, base)
    StateFolder(config.state).make()
    return config


def commit(config: DeviceConfig, server_round: int) -> None:
    path = str(config.adapters / f"notes-{server_round}")
    StateFolder(config.state).write("adapter", {"path": path, "round": server_round, "name": "notes"})


@contextmanager
def publishing(publisher: Publisher) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=publisher.run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_each_commit_replaces_the_adapter_of_one_name_and_a_service_that_starts_again_gets_it_again(
    device: DeviceConfig,
) -> None:
    starts = [1]
    with listening() as (url, asked), publishing(Publisher(device, url, "secret", starts=lambda: starts[0])):
        commit(device, 1)
        until(lambda: len(asked) == 1)
        commit(device, 2)
        until(lambda: len(asked) == 2)
        starts[0] = 2
        until(lambda: len(asked) == 3)
    assert [one["lora_path"] for one in asked] == ["notes-1", "notes-2", "notes-2"]
    assert asked[0] == {
        "path": "/v1/load_lora_adapter", "key": "Bearer secret", "lora_name": "federated", "lora_path": "notes-1",
        "load_inplace": True,
    }  # fmt: skip
    told = StateFolder(device.state).read("published")
    assert (told["round"], told["error"]) == (2, "")


def test_what_a_service_refuses_or_that_it_is_not_there_is_told(device: DeviceConfig) -> None:
    with listening(400) as (url, _):
        assert Publisher(device, url, "secret").load(Path("notes-1")) == f"{url} answers 400: said so"
    assert "cannot be reached" in Publisher(device, url, "secret").load(Path("notes-1"))


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; print(sys.argv[1:])", ""),
        ("import sys; sys.exit('no room')", "ended with 1: no room"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_a_command_runs_once_a_commit_with_the_adapters_path(device: DeviceConfig, program: str, told: str) -> None:
    command = (sys.executable, "-c", program, "{adapter}", "round {round}")
    config = replace(
        device, serve=replace(device.serve, on_commit=command, timeout_s=1.0 if "sleep" in program else 60.0)
    )
    said = Publisher(config).run_command({"path": "/a/notes-1", "round": 1, "name": "notes"})
    assert said.endswith(told)
    assert bool(said) == bool(told)


def test_a_command_that_is_not_there_is_told_in_the_status_and_not_repeated(device: DeviceConfig) -> None:
    config = replace(device, serve=replace(device.serve, on_commit=("/nowhere/at-all", "{adapter}")))
    commit(config, 1)
    with publishing(Publisher(config)):
        until(lambda: StateFolder(device.state).read("published"))
    told = StateFolder(device.state).read("published")
    assert told["error"] == "/nowhere/at-all: No such file or directory"
    assert told["ran"] == told["path"]


@pytest.mark.parametrize("what", ["endless", "a pipe", "open to others", "not there", "no text"])
def test_the_file_of_the_admin_key_is_read_as_a_secret(device: DeviceConfig, tmp_path: Path, what: str) -> None:
    path = tmp_path / "admin.key"
    config = replace(device, serve=replace(device.serve, admin_key_file=str(path)))
    if what == "endless":
        path.symlink_to("/dev/zero")
    elif what == "a pipe":
        os.mkfifo(path)
    elif what != "not there":
        path.write_bytes(b"\xff\xfe" if what == "no text" else b"0123456789abcdef-admin")
        path.chmod(0o600 if what == "no text" else 0o644)
    with pytest.raises(ConfigError, match=r"serve\.admin_key_file: "):
        admin_key_of(config)
    if what == "open to others":
        path.chmod(0o600)
        assert admin_key_of(config) == "0123456789abcdef-admin"


def test_the_admin_key_does_not_go_where_an_answer_sends_it(device: DeviceConfig) -> None:
    with listening() as (elsewhere, asked):

        class Sends(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(302)
                self.send_header("Location", elsewhere)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Sends) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            said = Publisher(device, f"http://127.0.0.1:{server.server_address[1]}", "key").load(Path("a"))
            server.shutdown()
            thread.join()
    assert "answers 302" in said
    assert not asked
