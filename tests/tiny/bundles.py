"""Keys, certificates and bundles, made with cryptography."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from fedlora.fleet.bundle import Bundle

CURVES: dict[str, ec.EllipticCurve] = {
    "nistp256": ec.SECP256R1(),
    "nistp384": ec.SECP384R1(),
    "nistp521": ec.SECP521R1(),
}


def device_key(curve: str = "nistp384") -> tuple[str, str]:
    """(private key in OpenSSH's format, the line of its public key)."""
    return written_key(ec.generate_private_key(CURVES[curve]))


def written_key(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[str, str]:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def with_passphrase(private: str) -> str:
    """The file says that the key is encrypted: cryptography encrypts one only beside bcrypt."""
    lines = private.strip().splitlines()
    content = base64.b64decode("".join(lines[1:-1]))
    sealed = content.replace(b"\x00\x00\x00\x04none", b"\x00\x00\x00\x0aaes256-ctr", 1)
    return "\n".join([lines[0], base64.b64encode(sealed).decode(), lines[-1], ""])


def trusted_key() -> str:
    return written_key(ed25519.Ed25519PrivateKey.generate())[1]


def certificate() -> str:
    """A certificate that is signed by its own key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def bundle_fields(**changed: object) -> dict[str, Any]:
    """The fields of a sound bundle, with some of them changed."""
    private, public = device_key()
    return {
        "name": "kitchen",
        "superlink": "fleet.example.org:8443",
        "ca_certificate": certificate(),
        "public_key": public,
        "private_key": private,
        "issued": "2026-01-01T00:00:00Z",
        "expires": "2036-01-01T00:00:00Z",
    } | changed


def bundle(**changed: object) -> Bundle:
    return Bundle(**bundle_fields(**changed))
