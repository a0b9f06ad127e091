"""The nginx configuration is one that nginx takes, and lets nothing but the Fleet API through."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fedlora_server.fleet.making import make_fleet
from fedlora_server.fleet.nginx import MAX_BODY_MB, nginx_text
from fedlora_server.fleet.settings import FleetSettings

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


def test_only_the_fleet_api_is_passed_on(fleet: FleetSettings) -> None:
    text = nginx_text(fleet)
    assert text.count("proxy_pass") == 1
    assert text.index("location /v1/fleet/") < text.index("proxy_pass")
    assert "return 404" in text
    assert fleet.at("nginx.conf").read_text() == text
    assert "server_name fleet.example.org 10.0.0.7;" in text


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_takes_it(fleet: FleetSettings, tmp_path: Path) -> None:
    whole = tmp_path / "whole.conf"
    whole.write_text(
        f"pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; include {fleet.at('nginx.conf')}; }}\n"
    )
    result = subprocess.run(
        [str(NGINX), "-t", "-c", str(whole)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Upstream(BaseHTTPRequestHandler):
    """In SuperLink's place: it says yes to whatever it gets."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Ask a fleet's server through nginx: the status of the answer."""
    settings = FleetSettings(
        folder=tmp_path / "fleet", host="localhost", port=free_port(), listen_port=free_port(), run={}
    )
    make_fleet(settings)
    tls = settings.at("tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    upstream = ThreadingHTTPServer(("127.0.0.1", settings.listen_port), Upstream)
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    whole = tmp_path / "whole.conf"
    paths = "".join(
        f"{each}_temp_path {tmp_path}/{each}; " for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole.write_text(
        f"daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {paths} include {settings.at('nginx.conf')}; }}\n"
    )
    client = ssl.create_default_context(cafile=str(tls / "ca.crt"))
    with subprocess.Popen([str(NGINX), "-c", str(whole)], stderr=subprocess.DEVNULL) as nginx:

        def ask(path: str, method: str = "POST", body: bytes = b"x", **headers: str) -> int:
            connection = HTTPSConnection("localhost", settings.port, context=client, timeout=30)
            try:
                connection.request(
                    method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
                )
                return connection.getresponse().status
            finally:
                connection.close()

        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                ask("/")
                break
            except OSError:
                time.sleep(0.05)
        yield ask
        nginx.terminate()
    upstream.shutdown()
    upstream.server_close()


SIGNED = {"flwr_public_key": "x", "flwr_signature": "x", "flwr_timestamp": "x"}


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_device_gets_through_and_nobody_gets_elsewhere(behind: Callable[..., int]) -> None:
    assert behind("/v1/fleet/pull-messages", **SIGNED) == 200
    assert behind("/v1/fleet/push-object", body=bytes(6 << 20), **SIGNED) == 200
    for path in ("/", "/health", "/docs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleetx/a"):
        assert behind(path, **SIGNED) == 404, path
    assert behind("/v1/fleet/../control/start-run", **SIGNED) == 404
    assert behind("/v1/fleet/%2e%2e/control/start-run", **SIGNED) == 404
    assert behind("/v1/fleet/pull-messages", "GET", **SIGNED) == 403


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_what_is_too_large_or_without_a_signature_is_turned_away(behind: Callable[..., int]) -> None:
    for missing in SIGNED:
        assert behind("/v1/fleet/pull-messages", **{k: v for k, v in SIGNED.items() if k != missing}) == 401
    assert behind("/v1/fleet/push-object", body=bytes((MAX_BODY_MB << 20) + 1), **SIGNED) == 413
