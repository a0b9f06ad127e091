"""The fleet's certificates: what they are for, how long, and that TLS takes them."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from fedlora.errors import ConfigError
from fedlora_server.fleet.authority import (
    CA_DAYS,
    SERVER_DAYS,
    days_left,
    expiry,
    make_authority,
    make_server_certificate,
    read_certificate,
)
from fedlora_server.fleet.making import renew_certificate
from fedlora_server.fleet.settings import FleetSettings

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    make_authority(tmp_path, "a test", NOW)
    make_server_certificate(tmp_path, ("fleet.example.org", "10.0.0.7", "::1"), NOW)
    return tmp_path


def test_the_server_is_certified_for_its_names_and_as_a_server_alone(tls: Path) -> None:
    certificate = read_certificate(tls / "server.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_ca_signs_certificates_and_no_other_ca(tls: Path) -> None:
    ca = read_certificate(tls / "ca.crt")
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    read_certificate(tls / "server.crt").verify_directly_issued_by(ca)


def test_certificates_are_valid_as_long_as_is_said(tls: Path) -> None:
    assert expiry(tls / "ca.crt") == NOW + timedelta(days=CA_DAYS)
    assert expiry(tls / "server.crt") == NOW + timedelta(days=SERVER_DAYS)
    assert read_certificate(tls / "server.crt").not_valid_before_utc < NOW - timedelta(hours=1)  # clocks that are late
    assert (days_left(tls / "server.crt", NOW), days_left(tls / "server.crt", NOW + timedelta(days=366))) == (365, -1)


def test_a_certificate_outlives_its_ca_in_no_case(tls: Path) -> None:
    make_server_certificate(tls, ("a",), NOW + timedelta(days=CA_DAYS - 10))
    assert expiry(tls / "server.crt") == expiry(tls / "ca.crt")


def test_keys_are_for_their_owner_alone(tls: Path) -> None:
    assert {(tls / name).stat().st_mode & 0o777 for name in ("ca.key", "server.key")} == {0o600}


def test_a_ca_that_expired_signs_nothing(tls: Path) -> None:
    before = (tls / "server.crt").read_bytes()
    with pytest.raises(ConfigError, match="the CA expired"):
        make_server_certificate(tls, ("a",), NOW + timedelta(days=CA_DAYS + 1))
    assert (tls / "server.crt").read_bytes() == before


def test_the_key_of_another_ca_signs_nothing(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    make_authority(other, "another", NOW)
    (tls / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="not the key"):
        make_server_certificate(tls, ("a",), NOW)


@pytest.mark.parametrize("content", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_a_damaged_file_is_refused_by_its_name(tls: Path, name: str, content: bytes) -> None:
    (tls / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        make_server_certificate(tls, ("a",), NOW)


def handshake(certificate: Path, ca: Path, name: str) -> str:
    """Shake hands over TLS, strictly: the version, or what the client says against it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "server.crt", certificate / "server.key")

    def accept() -> None:
        connection, _ = listener.accept()
        try:
            with server.wrap_socket(connection, server_side=True):
                pass
        except (ssl.SSLError, OSError):
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname=name) as secure,
        ):
            return secure.version() or ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        thread.join(10)
        listener.close()


def test_tls_takes_the_certificate_before_and_after_it_was_renewed(fleet: FleetSettings) -> None:
    tls = fleet.at("tls")
    for name in ("fleet.example.org", "10.0.0.7", "localhost", "127.0.0.1", "::1"):
        assert handshake(tls, tls / "ca.crt", name) == "TLSv1.3"
    before, ca = (tls / "server.crt").read_bytes(), (tls / "ca.crt").read_bytes()
    renew_certificate(fleet)
    assert (tls / "server.crt").read_bytes() != before
    assert (tls / "ca.crt").read_bytes() == ca
    assert handshake(tls, tls / "ca.crt", "fleet.example.org") == "TLSv1.3"


def test_tls_takes_no_other_name_and_no_other_ca(fleet: FleetSettings, tmp_path: Path) -> None:
    make_authority(tmp_path, "another", datetime.now(UTC))
    assert "mismatch" in handshake(fleet.at("tls"), fleet.at("tls", "ca.crt"), "other.example.org")
    assert "unable to get" in handshake(fleet.at("tls"), tmp_path / "ca.crt", "localhost")
