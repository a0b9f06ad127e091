"""What keeps a device from its server is told with what to do, each against a real socket."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fedlora_client.service.config import ServerSection
from fedlora_client.service.reaching import hindrance
from fedlora_server.fleet.authority import SERVER_DAYS, make_authority, make_server_certificate

NOW = datetime.now(UTC)


@contextmanager
def listening(tls: Path | None) -> Iterator[str]:
    """The address of a server that shakes hands and hangs up; without TLS it says a word that is none of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls:
        context.load_cert_chain(tls / "server.crt", tls / "server.key")

    def answer() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                if tls:
                    with suppress(OSError), context.wrap_socket(connection, server_side=True):
                        pass
                else:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"localhost:{listener.getsockname()[1]}"
        thread.join(10)


def made(folder: Path, *, names: tuple[str, ...] = ("localhost",), at: datetime = NOW) -> Path:
    folder.mkdir()
    make_authority(folder, "localhost", min(at, NOW))
    make_server_certificate(folder, names, at)
    return folder


def test_nothing_keeps_a_device_from_a_server_of_its_fleet(tmp_path: Path) -> None:
    tls = made(tmp_path / "tls")
    with listening(tls) as address:
        assert hindrance(ServerSection(superlink=address, certificates=str(tls / "ca.crt"))) == ""
    with listening(None) as address:
        assert hindrance(ServerSection(superlink=address, insecure=True)) == ""


@pytest.mark.parametrize(
    ("names", "age_days", "told", "advice"),
    [
        (("localhost",), SERVER_DAYS + 1, "expired", "fedlora server rotate"),
        (("localhost",), -2, "not yet valid", "set this device's clock"),
        (("elsewhere.example",), 0, "ismatch", "--host"),
    ],
)
def test_a_certificate_that_is_refused_is_told_with_what_to_do(
    tmp_path: Path, names: tuple[str, ...], age_days: int, told: str, advice: str
) -> None:
    tls = made(tmp_path / "tls", names=names, at=NOW - timedelta(days=age_days))
    with listening(tls) as address:
        said = hindrance(ServerSection(superlink=address, certificates=str(tls / "ca.crt")))
    assert told in said
    assert advice in said


def test_another_fleets_server_is_no_server_of_this_device(tmp_path: Path) -> None:
    tls, other = made(tmp_path / "tls"), made(tmp_path / "other")
    with listening(tls) as address:
        said = hindrance(ServerSection(superlink=address, certificates=str(other / "ca.crt")))
    assert "it is not of this device's fleet; join with a bundle of this server" in said


def test_a_port_without_tls_and_one_without_anybody_are_told(tmp_path: Path) -> None:
    with listening(None) as address:
        assert "no TLS is spoken there" in hindrance(ServerSection(superlink=address))
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    assert "nobody listens there; start fedlora server run" in hindrance(ServerSection(superlink=address))
    for unknown in ("nobody.invalid:1", "no..such:1"):
        assert "server.superlink in device.toml" in hindrance(ServerSection(superlink=unknown, insecure=True))
