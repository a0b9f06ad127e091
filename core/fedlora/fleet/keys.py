"""Keys and certificates as they stand in files, looked at without cryptography: that they are what they say they are.

Flower authenticates a SuperNode by an elliptic key on a NIST curve, the private one in OpenSSH's format. Whether a key is
on its curve and a certificate is signed is for whoever uses it to find; here a file of another kind is told by name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import NamedTuple

from fedlora.errors import BundleError

CURVES = {"nistp256": 65, "nistp384": 97, "nistp521": 133}  # bytes of an uncompressed point
MAX_CERTIFICATES = 8
# Nothing is given back (*+): spaces that could be read in several ways would take the cube of their number.
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----(?=\s)([A-Za-z0-9+/=\s]*+)-----END \1-----\s*+")
PUBLIC, PRIVATE = "PUBLIC KEY", "PRIVATE KEY"  # labels of the blocks of a pair that signs
_OPENSSH = "OPENSSH PRIVATE KEY"
_MAGIC = b"openssh-key-v1\0"


class Blob(NamedTuple):
    """The next field of SSH's binary form, and what stands after it."""

    field: bytes
    rest: bytes


def check_public_key(key: str) -> str:
    """The type and base64 of an elliptic SSH public key, without its comment. Raises BundleError for any other."""
    kind, blob = _public_line(key, "public_key")
    curve = kind.removeprefix("ecdsa-sha2-")
    if kind == curve or curve not in CURVES:
        raise BundleError(
            f"public_key: a key of type {kind!r:.40}; Flower takes ecdsa-sha2-nistp256, -nistp384 or -nistp521: "
            "make one with ssh-keygen -t ecdsa -b 384"
        )
    name, after = _next(blob, "public_key")
    point, after = _next(after, "public_key")
    if name.decode("ascii", "replace") != curve or len(point) != CURVES[curve] or point[0] != 4 or after:
        raise BundleError(f"public_key: not a point of {curve}; expected the whole line of the .pub file")
    return " ".join(key.split()[:2])


def check_trusted_key(key: str) -> str:
    """The line of an Ed25519 SSH public key, as Flower's `--trusted-entities` takes it. Raises BundleError for another."""
    kind, blob = _public_line(key, "trusted_entities")
    if kind != "ssh-ed25519":
        raise BundleError(f"trusted_entities: a key of type {kind!r:.40}; only ssh-ed25519 signs apps")
    point, after = _next(blob, "trusted_entities")
    if len(point) != 32 or after:
        raise BundleError("trusted_entities: not an Ed25519 key; expected the whole line of the .pub file")
    return key


def check_private_key(key: str, public_key: str) -> str:
    """An unencrypted private key in OpenSSH's format that belongs to `public_key`. Raises BundleError for any other.

    Flower's SuperNode asks for no passphrase, so an encrypted key would never start.
    """
    blocks = _pem_blocks(key, "private_key")
    if [label for label, _ in blocks] != [_OPENSSH]:
        found = ", ".join(label for label, _ in blocks)
        raise BundleError(
            f"private_key: {found}; Flower's SuperNode takes one {_OPENSSH}: "
            "ssh-keygen -p -N '' -f KEY rewrites a key in that format"
        )
    data = blocks[0][1]
    if not data.startswith(_MAGIC):
        raise BundleError("private_key: not a key in OpenSSH's format; expected the whole file that ssh-keygen wrote")
    cipher, rest = _next(data[len(_MAGIC) :], "private_key")
    if cipher != b"none":
        raise BundleError(
            "private_key: it has a passphrase, which a SuperNode cannot ask for; take it off: ssh-keygen -p"
        )
    _, rest = _next(rest, "private_key")  # the key derivation and its options
    _, rest = _next(rest, "private_key")
    count, rest = int.from_bytes(rest[:4], "big"), rest[4:]
    public, rest = _next(rest, "private_key")
    _, rest = _next(rest, "private_key")
    if count != 1 or rest:
        raise BundleError(f"private_key: {count} keys in one file; expected one")
    if base64.b64encode(public).decode() != public_key.split()[1]:
        raise BundleError("private_key: it belongs to another public_key; expected the two of one pair")
    return key


def check_certificates(text: str) -> str:
    """One certificate in PEM, or a few. Raises BundleError for anything else."""
    blocks = _pem_blocks(text, "ca_certificate")
    if any(label != "CERTIFICATE" for label, _ in blocks) or len(blocks) > MAX_CERTIFICATES:
        found = ", ".join(label for label, _ in blocks[: MAX_CERTIFICATES + 1])
        raise BundleError(
            f"ca_certificate: {found}; expected 1 to {MAX_CERTIFICATES} CERTIFICATE blocks and nothing else"
        )
    for _, data in blocks:
        if not _is_whole_sequence(data):
            raise BundleError("ca_certificate: its content is cut or is no certificate; expected the whole PEM file")
    return text


def check_pair(text: str, label: str, where: str) -> str:
    """A pair that signs, as `fedlora.identity.keys` writes it: two blocks of one label. Raises BundleError for another."""
    blocks = _pem_blocks(text, where)
    if [name for name, _ in blocks] != [label, label]:
        found = ", ".join(name for name, _ in blocks[:3])
        raise BundleError(f"{where}: {found}; expected two blocks {label}, of Ed25519 and of ML-DSA-65")
    if not all(_is_whole_sequence(data) for _, data in blocks):
        raise BundleError(f"{where}: its content is cut or is no key; expected the whole pair")
    return text


def fingerprint_of(public_key: str) -> str:
    """What ssh-keygen -l prints for the key: "SHA256:" and the base64 of its digest."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _public_line(key: str, where: str) -> tuple[str, bytes]:
    """(type, what follows it) of the line of an SSH public key."""
    parts = key.split(maxsplit=2)
    if len(parts) < 2 or not key.strip().isprintable():  # a second line neither
        raise BundleError(f"{where}: not an SSH public key; expected one line: a type, a space, base64")
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        raise BundleError(f"{where}: its second word is not base64; expected the whole line of the .pub file") from None
    kind, rest = _next(blob, where)
    if kind.decode("ascii", "replace") != parts[0]:
        raise BundleError(
            f"{where}: it says {parts[0]!r:.40} and holds another type; expected the line of the .pub file"
        )
    return parts[0], rest


def _next(data: bytes, where: str) -> Blob:
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 or len(data) - 4 < length:
        raise BundleError(f"{where}: it is cut short; expected the whole key")
    return Blob(data[4 : 4 + length], data[4 + length :])


def _pem_blocks(text: str, where: str) -> list[tuple[str, bytes]]:
    """[(label, content)] of a text that is PEM blocks and nothing else."""
    blocks, place = [], 0
    text = text.lstrip()
    while place < len(text):
        found = _PEM.match(text, place)
        if found is None:
            break
        try:
            blocks.append((found[1], base64.b64decode("".join(found[2].split()), validate=True)))
        except (binascii.Error, ValueError):
            raise BundleError(f"{where}: the block {found[1]} is not base64; expected the whole PEM file") from None
        place = found.end()
    if not blocks or place < len(text):
        raise BundleError(f"{where}: not PEM; expected lines from -----BEGIN to -----END, and nothing around them")
    return blocks


def _is_whole_sequence(data: bytes) -> bool:
    """Whether it is one DER sequence, as long as it says."""
    if len(data) < 2 or data[0] != 0x30:
        return False
    if data[1] < 0x80:
        return len(data) == 2 + data[1]
    size = data[1] & 0x7F
    return 1 <= size <= 4 and len(data) == 2 + size + int.from_bytes(data[2 : 2 + size], "big")
