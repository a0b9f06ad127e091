"""The fleet's private CA and the certificate of its server: what a device trusts, and how long.

tls/ca.crt, ca.key            ECDSA P-256, valid for 10 years; signs the server's certificates and nothing else
tls/server.crt, server.key    ECDSA P-256, valid for 1 year; renewed under the same CA, so that devices notice nothing
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fedlora.errors import ConfigError
from fedlora.files.atomic import whole_file, write_text
from fedlora.files.bounded import read_bounded
from fedlora.fleet.names import is_ip

CA_DAYS, SERVER_DAYS, WARNING_DAYS = 3652, 365, 30
_BEFORE = timedelta(days=1)  # devices whose clocks are late take the certificate at once
_MAX_BYTES = 1 << 16


def make_authority(folder: Path, fleet: str, now: datetime) -> None:
    """Write ca.crt and ca.key into a folder. `fleet` goes into its name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedlora fleet {fleet}"[:64])])
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_key(folder / "ca.key", key)
    write_text(folder / "ca.crt", _pem(certificate))


def make_server_certificate(folder: Path, names: tuple[str, ...], now: datetime) -> None:
    """Write server.crt and server.key, signed by the CA in the folder, for these names. Raises ConfigError."""
    ca, ca_key = read_certificate(folder / "ca.crt"), _read_key(folder / "ca.key")
    if ca.public_key() != ca_key.public_key():
        raise ConfigError(f"{folder}: ca.key is not the key of ca.crt; copy both of one fleet")
    if ca.not_valid_after_utc <= now:
        raise ConfigError(
            f"{folder / 'ca.crt'}: the CA expired on {ca.not_valid_after_utc:%Y-%m-%d}; make a new fleet and enrol its "
            "devices"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [x509.IPAddress(ipaddress.ip_address(n)) if is_ip(n) else x509.DNSName(n.rstrip(".")) for n in names]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(min(now + timedelta(days=SERVER_DAYS), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_key(folder / "server.key", key)
    write_text(folder / "server.crt", _pem(certificate))


def expiry(path: Path) -> datetime:
    """Until when a certificate is valid. Raises ConfigError where it cannot be read."""
    return read_certificate(path).not_valid_after_utc


def days_left(path: Path, now: datetime | None = None) -> int:
    """The whole days that a certificate is still valid; negative once it is not."""
    return (expiry(path) - (now or datetime.now(UTC))).days


def read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_bounded(path, _MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected the certificate of a fleet") from None
    except ValueError:
        raise ConfigError(
            f"{path}: not a certificate in PEM; expected the one that fedlora server init wrote"
        ) from None


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key, PKCS #8 in PEM, for its owner alone."""
    with whole_file(path, is_private=True) as aside:
        aside.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_bounded(path, _MAX_BYTES), None)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; the CA's key must be there to sign") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: not a private key without a passphrase; expected the CA's key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: must be an elliptic key, as fedlora server init writes it")
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
