"""Pairs of keys: Ed25519 and ML-DSA-65 (FIPS 204). A message is signed by both, and both signatures must hold.

So what is signed today holds as long as one of the two does: against a flaw in the newer one, and against the machines that
will break the older one. A pair is one file of two standard blocks of PEM, Ed25519's first:

    private   two PKCS#8 blocks, BEGIN PRIVATE KEY, or, under one passphrase, BEGIN ENCRYPTED PRIVATE KEY; mode 0600
    public    two SubjectPublicKeyInfo blocks, BEGIN PUBLIC KEY

The id of a pair is the sha256 over both of its SubjectPublicKeyInfo in DER, Ed25519's first, in hexadecimal digits.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from fedlora.counted import counted
from fedlora.errors import ConfigError, IdentityError, SignatureError
from fedlora.files.atomic import whole_file, write_text
from fedlora.files.bounded import read_bounded
from fedlora.files.ownership import read_secret
from fedlora.identity.passphrase import encrypted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

ED25519_BYTES, ML_DSA_65_BYTES = 64, 3309  # of a signature
MAX_BYTES = 1 << 14  # of a file with a pair
_PRIVATE = re.compile(
    rb"-----BEGIN (?:ENCRYPTED )?PRIVATE KEY-----.*?-----END (?:ENCRYPTED )?PRIVATE KEY-----\s*", re.S
)
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\s*", re.S)
_MAKE = "expected two blocks, of Ed25519 and of ML-DSA-65, as fedlora key new writes them"


class Signatures(NamedTuple):
    """Both signatures of one message by one pair."""

    ed25519: bytes  # [64]
    ml_dsa_65: bytes  # [3309]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a pair: what others know it by."""

    ed25519: bytes  # SubjectPublicKeyInfo in DER
    ml_dsa_65: bytes  # the same

    @property
    def keyid(self) -> str:
        """64 hexadecimal digits that name the pair."""
        return hashlib.sha256(self.ed25519 + self.ml_dsa_65).hexdigest()

    @classmethod
    def from_pem(cls, text: str | bytes, where: str = "the public key") -> Self:
        """The pair in a text. Raises IdentityError, which begins with `where`, for anything else."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

        try:
            first, second = map(serialization.load_pem_public_key, _blocks(text, _PUBLIC, where))
        except (ValueError, UnsupportedAlgorithm):
            raise IdentityError(f"{where}: a block of it is no public key; {_MAKE}") from None
        if not (isinstance(first, Ed25519PublicKey) and isinstance(second, MLDSA65PublicKey)):
            raise IdentityError(f"{where}: {_kind(first)} and {_kind(second)}; {_MAKE}")
        return cls(_public_der(first), _public_der(second))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The pair in a file. Raises IdentityError for anything else."""
        try:
            return cls.from_pem(read_bounded(path, MAX_BYTES), str(path))
        except OSError as error:
            raise IdentityError(f"{path}: cannot be read: {error.strerror}; expected a file of public keys") from None

    def to_pem(self) -> str:
        from cryptography.hazmat.primitives import serialization

        return "".join(
            key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
            for key in _loaded(self)
        )

    def write(self, path: Path) -> None:
        """Write the file, whole; it is for everybody."""
        write_text(path, self.to_pem())

    def verify(self, message: bytes, signatures: Signatures) -> None:
        """Raise SignatureError unless both signatures are this pair's, over this message."""
        from cryptography.exceptions import InvalidSignature

        first, second = _loaded(self)
        checks: tuple[Callable[[bytes, bytes], None], ...] = (first.verify, second.verify)
        for name, check, signature in zip(Signatures._fields, checks, signatures, strict=True):
            try:
                check(signature, message)
            except InvalidSignature:
                raise SignatureError(
                    f"the signature {name} of key {self.keyid[:16]} does not hold; expected one that the key made over "
                    "these bytes"
                ) from None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A pair that signs. Whoever holds it speaks in its name."""

    _ed25519: Ed25519PrivateKey = field(repr=False)
    _ml_dsa_65: MLDSA65PrivateKey = field(repr=False)
    _public: PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        public = PublicKey(_public_der(self._ed25519.public_key()), _public_der(self._ml_dsa_65.public_key()))
        object.__setattr__(self, "_public", public)

    @classmethod
    def generate(cls) -> Self:
        """A new pair, from the system's randomness. Raises IdentityError where this `cryptography` has no ML-DSA."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

        try:
            return cls(Ed25519PrivateKey.generate(), MLDSA65PrivateKey.generate())
        except UnsupportedAlgorithm as error:
            raise IdentityError(f"no pair can be made: {error}; install cryptography's own wheel") from None

    @classmethod
    def read(cls, path: Path, passphrase: bytes | None = None) -> Self:
        """The pair in a file that nobody else may read.

        Raises IdentityError for anything else, also where the passphrase is wrong, or missing.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

        try:
            content = read_secret(path, MAX_BYTES, "a signing key")
        except ConfigError as error:
            raise IdentityError(str(error)) from None
        except OSError as error:
            raise IdentityError(f"{path}: cannot be read: {error.strerror}; expected a signing key") from None
        blocks = _blocks(content, _PRIVATE, str(path))
        if is_encrypted(content) and passphrase is None:
            raise IdentityError(f"{path}: it has a passphrase, and none was given; give its passphrase")
        try:
            first, second = (
                serialization.load_pem_private_key(block, passphrase if is_encrypted(block) else None)
                for block in blocks
            )
        except (ValueError, TypeError, UnsupportedAlgorithm):
            told = "the passphrase is another one, or a block is" if passphrase is not None else "a block of it is"
            raise IdentityError(f"{path}: {told} no private key; {_MAKE}") from None
        if not (isinstance(first, Ed25519PrivateKey) and isinstance(second, MLDSA65PrivateKey)):
            raise IdentityError(f"{path}: {_kind(first)} and {_kind(second)}; {_MAKE}")
        return cls(first, second)

    def write(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write the file, whole, for its owner alone. Raises IdentityError where something lies at `path` already."""
        if os.path.lexists(path):
            raise IdentityError(f"{path} exists already, and may be the only copy of a key; name another file")
        content = self.to_pem(passphrase)
        with whole_file(path, is_private=True) as aside:
            aside.write_bytes(content)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """The content of its file: a secret, unless it has a passphrase."""
        from cryptography.hazmat.primitives import serialization

        plain = serialization.NoEncryption()
        content = b""
        for key in (self._ed25519, self._ml_dsa_65):
            der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, plain)
            content += private_pem(der, passphrase)
        return content

    @property
    def public(self) -> PublicKey:
        return self._public

    def sign(self, message: bytes) -> Signatures:
        """Both signatures over a message, as they are: no digest, no context."""
        return Signatures(self._ed25519.sign(message), self._ml_dsa_65.sign(message))


def private_pem(der: bytes, passphrase: bytes | None = None) -> bytes:
    """A block of PEM over the PKCS#8 of a private key, under a passphrase if there is one. Raises IdentityError."""
    if passphrase == b"":
        raise IdentityError("the passphrase is empty; give one of at least a character, or none at all")
    label = b"PRIVATE KEY"
    if passphrase is not None:
        der, label = encrypted(der, passphrase), b"ENCRYPTED PRIVATE KEY"
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, _lines(der), label)


def is_encrypted(content: bytes) -> bool:
    """Whether a passphrase is needed to read a file of private keys, or a block of it."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in content


def _blocks(text: str | bytes, pattern: re.Pattern[bytes], where: str) -> list[bytes]:
    """The two blocks of PEM that a file is made of. Raises IdentityError for anything else."""
    content = text.encode("utf-8", "replace") if isinstance(text, str) else text
    blocks = pattern.findall(content[:MAX_BYTES])
    if len(blocks) != 2 or b"".join(blocks) != content.lstrip():
        raise IdentityError(f"{where}: {counted(len(blocks), 'block')}, or something around them; {_MAKE}")
    return blocks


def _lines(der: bytes) -> bytes:
    """Base64 in lines of 64 characters, as PEM has it (RFC 7468)."""
    text = base64.b64encode(der)
    return b"".join(text[place : place + 64] + b"\n" for place in range(0, len(text), 64))


def _public_der(key: Ed25519PublicKey | MLDSA65PublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=256)
def _loaded(public: PublicKey) -> tuple[Ed25519PublicKey, MLDSA65PublicKey]:
    from cryptography.hazmat.primitives import serialization

    first, second = (serialization.load_der_public_key(der) for der in (public.ed25519, public.ml_dsa_65))
    return first, second  # type: ignore[return-value]


def _kind(key: object) -> str:
    return type(key).__name__
