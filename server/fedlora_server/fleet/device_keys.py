"""The key by which a SuperNode is known, made here or brought by the device."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedlora.errors import BundleError, ConfigError
from fedlora.files.bounded import read_bounded
from fedlora.fleet.keys import check_public_key

_MAX_BYTES = 1 << 14


def make_device_key() -> tuple[str, str]:
    """(private key in OpenSSH's format, the line of its public key), on P-384 as Flower's own documents have it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def read_public_key(path: Path) -> str:
    """The public key in a .pub file, without its comment. Raises ConfigError for anything else."""
    try:
        key = check_public_key(read_bounded(path, _MAX_BYTES).decode("utf-8", "replace").strip())
        as_pem(key)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; expected the .pub file of a device's key"
        ) from None
    except BundleError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:  # a point beside its curve
        raise ConfigError(f"{path}: {error}; expected the .pub file of a device's key") from None
    return key


def as_pem(public_key: str) -> bytes:
    """A public key as Flower keeps it."""
    key = serialization.load_ssh_public_key(public_key.encode())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def from_pem(pem: bytes) -> str:
    """The line of a public key that Flower keeps."""
    key = serialization.load_pem_public_key(pem)
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
