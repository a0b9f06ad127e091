"""A private key under a passphrase: PKCS#8's own EncryptedPrivateKeyInfo (RFC 5958), by PBES2 (RFC 8018).

The key of AES-256-CBC is made from the passphrase by scrypt (RFC 7914), which takes 16 MB five times over for each guess;
more, openssl would not read. `cryptography` reads that, too, but writes PBKDF2 with 2048 turns alone, which cost a graphics
card next to nothing.
"""

from __future__ import annotations

import os

N_LOG2, R, P = 14, 8, 5  # 128 * N * R bytes of memory, P times
_PBES2 = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42
_SEQUENCE, _OCTETS, _INTEGER = 0x30, 0x04, 0x02


def encrypted(key_info: bytes, passphrase: bytes) -> bytes:
    """The DER of an EncryptedPrivateKeyInfo over the DER of a PrivateKeyInfo."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    from cryptography.hazmat.primitives.padding import PKCS7

    salt, iv = os.urandom(16), os.urandom(16)
    key = Scrypt(salt=salt, length=32, n=1 << N_LOG2, r=R, p=P).derive(passphrase)
    padder, encryptor = PKCS7(128).padder(), Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    padded = padder.update(key_info) + padder.finalize()
    parameters = b"".join((_der(_OCTETS, salt), _integer(1 << N_LOG2), _integer(R), _integer(P), _integer(len(key))))
    derivation = _der(_SEQUENCE, _SCRYPT + _der(_SEQUENCE, parameters))
    scheme = _der(_SEQUENCE, _AES_256_CBC + _der(_OCTETS, iv))
    algorithm = _der(_SEQUENCE, _PBES2 + _der(_SEQUENCE, derivation + scheme))
    return _der(_SEQUENCE, algorithm + _der(_OCTETS, encryptor.update(padded) + encryptor.finalize()))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else _big_endian(size)
    return bytes([tag, *([0x80 | len(length)] if size >= 0x80 else [])]) + length + content


def _integer(value: int) -> bytes:
    content = _big_endian(value)
    return _der(_INTEGER, (b"\0" if content[0] & 0x80 else b"") + content)


def _big_endian(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
