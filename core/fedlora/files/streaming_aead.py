"""AES-256-GCM by segments: Tink's AES-GCM-HKDF streaming encryption, with segments of 1 MiB.

    stream    = header | segment 0 | segment 1 | ... | last segment
    header    = 40 (uint8) | salt [32] | nonce prefix [7]
    key       = HKDF-SHA256(data key [32], salt, info=associated data, 32 bytes)
    segment i = AES-256-GCM(key, nonce = prefix | i (uint32, big endian) | 1 where it is the last, else 0), tag [16] behind

A segment has 2^20 bytes of the stream; the first shares them with the header, and the last is shorter. The nonce binds a
segment to its place and to being the last, the associated data to all that it says; so no segment is left out, moved or
brought from elsewhere. Sources: developers.google.com/tink/streaming_aead/aes_gcm_hkdf_streaming; Hoang, Reyhanitabar,
Rogaway, Vizar, Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, CRYPTO 2015 (STREAM). Tink is the
oracle of the tests: its own package is C++ of 4 MB and protobuf, for what are these lines over `cryptography`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
SEGMENT_BYTES, HEADER_BYTES, TAG_BYTES = 1 << 20, 40, 16
_SALT_BYTES, _PREFIX_BYTES = 32, 7


class StreamError(Exception):
    """A stream that is not, to the bit, what was written under this key and with this associated data."""


def plain_bytes(stream_bytes: int) -> int:
    """How many bytes a stream of that size holds. Raises StreamError where none has that size."""
    segments = -(-stream_bytes // SEGMENT_BYTES)
    last = stream_bytes - (segments - 1) * SEGMENT_BYTES - (HEADER_BYTES if segments == 1 else 0)
    if stream_bytes < HEADER_BYTES + TAG_BYTES or last < TAG_BYTES or (segments > 1 and last == TAG_BYTES):
        raise StreamError
    return stream_bytes - HEADER_BYTES - segments * TAG_BYTES


class StreamWriter:
    """Encrypts what is written into `file`; the stream is whole once `finish` has been called."""

    def __init__(self, file: BinaryIO, data_key: bytes, associated_data: bytes) -> None:
        salt, self._prefix = os.urandom(_SALT_BYTES), os.urandom(_PREFIX_BYTES)
        self._file, self._cipher = file, _cipher(data_key, salt, associated_data)
        self._plain, self._filled = bytearray(SEGMENT_BYTES - TAG_BYTES), 0
        self._sealed = bytearray(SEGMENT_BYTES)
        self._room = SEGMENT_BYTES - TAG_BYTES - HEADER_BYTES
        self._number = self._written = 0
        file.write(bytes([HEADER_BYTES]) + salt + self._prefix)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take bytes; a memoryview in C's order counts as its bytes."""
        view = memoryview(data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        begin = 0
        while begin < len(view):
            if self._filled == self._room:  # more comes: it is not the last one
                self._flush(is_last=False)
            part = view[begin : begin + self._room - self._filled]
            self._plain[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            begin += len(part)
        self._written += len(view)
        return len(view)

    def tell(self) -> int:
        """How many bytes were taken."""
        return self._written

    def finish(self) -> None:
        """Write the last segment."""
        self._flush(is_last=True)

    def _flush(self, *, is_last: bool) -> None:
        size = self._filled + TAG_BYTES
        nonce = _nonce(self._prefix, self._number, is_last=is_last)
        with memoryview(self._plain)[: self._filled] as plain, memoryview(self._sealed)[:size] as sealed:
            self._cipher.encrypt_into(nonce, plain, None, sealed)
            self._file.write(sealed)
        self._number, self._filled, self._room = self._number + 1, 0, SEGMENT_BYTES - TAG_BYTES


def read_stream(file: BinaryIO, stream_bytes: int, data_key: bytes, associated_data: bytes) -> Iterator[memoryview]:
    """The stream's content, segment by segment, each verified; it is valid until the next one is asked for.

    Only who has had all of them without StreamError knows that the content is whole.
    """
    from cryptography.exceptions import InvalidTag

    plain_bytes(stream_bytes)
    header = file.read(HEADER_BYTES)
    if len(header) != HEADER_BYTES or header[0] != HEADER_BYTES:
        raise StreamError
    cipher = _cipher(data_key, header[1 : 1 + _SALT_BYTES], associated_data)
    plain, number, left, room = bytearray(SEGMENT_BYTES), 0, stream_bytes - HEADER_BYTES, SEGMENT_BYTES - HEADER_BYTES
    while left:
        sealed = file.read(min(left, room))
        if len(sealed) != min(left, room):
            raise StreamError
        left, room = left - len(sealed), SEGMENT_BYTES
        nonce = _nonce(header[1 + _SALT_BYTES :], number, is_last=not left)
        with memoryview(plain)[: len(sealed) - TAG_BYTES] as view:
            try:
                cipher.decrypt_into(nonce, sealed, None, view)
            except InvalidTag:
                raise StreamError from None
            yield view
        number += 1


def _cipher(data_key: bytes, salt: bytes, associated_data: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, associated_data).derive(data_key))


def _nonce(prefix: bytes, number: int, *, is_last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([is_last])
