"""A release in a real registry (Debian's docker-registry), read back by the `oras` client."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.errors import ConfigError, ReleaseError, SignatureError
from fedlora.identity.keys import SigningKey
from fedlora.release.folder import read_release
from fedlora_server.distribution.oci_registry import ARTIFACT, PASSWORD, USER, Registry

from tests.tiny.releases import write_release

oras_provider = pytest.importorskip("oras.provider", reason="not installed: pip install fedlora[oci]")
KEY = SigningKey.generate()
_PROGRAM = shutil.which("docker-registry")
_SECRET = "open-sesame-1234"
# bcrypt of _SECRET, for user kitchen: htpasswd -Bbn kitchen open-sesame-1234
_HTPASSWD = "kitchen:$2b$05$QpVuY5lhwId9x3Nv9v3hAuZZYZ9iQEFTltNAG2psPWHeA.iYEchZK"
needs_a_registry = pytest.mark.skipif(_PROGRAM is None, reason="no docker-registry: apt-get install docker-registry")


@contextmanager
def registry(folder: Path, more: str = "") -> Iterator[str]:
    """HOST:PORT of a registry of its own, as long as the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "registry.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder / 'registry'}\nhttp:\n  addr: {address}\n{more}"
    )
    process = subprocess.Popen(
        [str(_PROGRAM), "serve", str(folder / "registry.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def pulled(reference: str, to: Path) -> Path:
    client = oras_provider.Registry(hostname=reference.partition("/")[0], insecure=True)
    client.pull(target=reference, outdir=str(to))
    return to


@needs_a_registry
def test_a_release_is_pulled_as_it_was_signed(base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY)
    KEY.public.write(tmp_path / "k.pub")
    with registry(tmp_path) as address:
        command = [
            "publish",
            "oci",
            str(tmp_path / "r"),
            f"{address}/team/tone",
            "--trust",
            str(tmp_path / "k.pub"),
            "--plain-http",
        ]
        told = CliRunner().invoke(commands, command, catch_exceptions=False).output
        assert told == f"tone 3 is {address}/team/tone:3\n"
        release = read_release(pulled(f"{address}/team/tone:3", tmp_path / "out"), [KEY.public])
        manifest = oras_provider.Registry(hostname=address, insecure=True).get_manifest(f"{address}/team/tone:3")
        assert manifest["artifactType"] == ARTIFACT
        assert manifest["annotations"]["dev.fedlora.base"] == base.fingerprint == release.manifest.base.fingerprint
        CliRunner().invoke(commands, command, catch_exceptions=False)  # the same once more
        write_release(tmp_path / "other", base, KEY, seed=2)
        with pytest.raises(ReleaseError, match="another content is there"):
            Registry(f"{address}/team/tone", plain=True).publish(tmp_path / "other", [KEY.public])
        read_release(pulled(f"{address}/team/tone:3", tmp_path / "again"), [KEY.public])


@needs_a_registry
def test_a_password_is_taken_from_the_environment_and_shown_nowhere(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_release(tmp_path / "r", base, KEY)
    (tmp_path / "htpasswd").write_text(_HTPASSWD + "\n")
    more = f"auth:\n  htpasswd:\n    realm: x\n    path: {tmp_path / 'htpasswd'}\n"
    with registry(tmp_path, more) as address:
        mine = Registry(f"{address}/tone", plain=True)
        monkeypatch.setenv(USER, "kitchen")
        monkeypatch.setenv(PASSWORD, "wrong-" + _SECRET)
        with pytest.raises(ReleaseError, match="cannot be pushed to") as refusal:
            mine.publish(tmp_path / "r", [KEY.public])
        assert _SECRET not in str(refusal.value)
        monkeypatch.setenv(PASSWORD, _SECRET)
        mine.publish(tmp_path / "r", [KEY.public])
    written = [path for path in tmp_path.rglob("*") if path.is_file() and _SECRET.encode() in path.read_bytes()]
    assert written == []


def test_what_nobody_trusted_signed_is_not_pushed(base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY)
    with pytest.raises(SignatureError):
        Registry("registry.example/tone").publish(tmp_path / "r", [SigningKey.generate().public])


def test_a_registry_that_is_not_there_is_told(base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY)
    with pytest.raises(ReleaseError, match=r"127\.0\.0\.1:9/tone:3: the registry cannot be pushed to"):
        Registry("127.0.0.1:9/tone", plain=True).publish(tmp_path / "r", [KEY.public])


@pytest.mark.parametrize("said", [b"[]", b"7", b'"manifest"', b"{"])
def test_what_answers_with_anything_but_an_object_is_told(base: BasePack, tmp_path: Path, said: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    write_release(tmp_path / "r", base, KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        registry = Registry(f"127.0.0.1:{server.server_port}/tone", plain=True)
        with pytest.raises(
            ReleaseError, match=r"not with a JSON object; expected a manifest|cannot be pushed to: JSON"
        ):
            registry.publish(tmp_path / "r", [KEY.public])
        server.shutdown()


@pytest.mark.parametrize(
    "reference", ["tone", "host/Tone", "host/tone:3", "user:secret@host/tone", "https://host/tone", "host/a@b"]
)
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST"):
        Registry(reference)


def test_without_tls_only_this_machine_is_spoken_to() -> None:
    with pytest.raises(ConfigError, match="credentials would go in the open"):
        Registry("registry.example/tone", plain=True)
