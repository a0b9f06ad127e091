"""The bytes of a data file, decompressed where they are compressed: by the file's first bytes, whatever its name says.

What comes out is bounded: a small file that expands without end is refused on the way, and never held.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fedlora.errors import DataError

from fedlora_client.records.containers import HEAD_BYTES, refused

COMPRESSED = (".gz", ".bz2", ".xz")  # the suffixes of what is decompressed here
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_EXPANDED_BYTES = 1 << 30  # of one compressed file
MAX_FOLD = 200  # times its size, beyond _FREE_BYTES: text shrinks to a tenth, not to so little
MAX_LINE_BYTES = 1 << 26  # of one record
_FREE_BYTES = 1 << 25
_BLOCK_BYTES = 1 << 18
_HOLE = bytes(_BLOCK_BYTES)
_GZIP = 16 + zlib.MAX_WBITS
_XZ_MEMORY_BYTES = 1 << 28  # xz -9 needs a quarter; a file may ask for 4 GiB
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz"}
_NAMES = {".gz": "a gzipped", ".bz2": "a bzip2", ".xz": "an xz"}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """The file's bytes, decompressed. Raises DataError, here and while they are read, for what is no text or damaged."""
    try:
        with _plain(path) as file:
            head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
            kind = _compression(head)
            if what := refused(head, path):
                raise DataError(f"{path}: it is {what}")
            if kind is None:
                if (suffix := path.suffix.lower()) in COMPRESSED:
                    raise DataError(_unread(path, f"Not {_NAMES[suffix]} file"))
                yield file
                return
            bounded = io.BufferedReader(_Bounded(_expanded(file, kind), path, os.fstat(file.fileno()).st_size))
            head = bounded.peek(HEAD_BYTES)[:HEAD_BYTES]
            if (what := refused(head, path)) or _compression(head):
                raise DataError(
                    f"{path}: what is compressed in it is {what or 'compressed once more; decompress it first'}"
                )
            yield bounded
    except _DAMAGED as error:
        raise DataError(_unread(path, getattr(error, "strerror", None) or error)) from None


def read_bytes(path: Path) -> bytes:
    """All of the file's bytes, decompressed. Raises DataError."""
    with opened(path) as file:
        return read_rest(file, path)


def read_rest(file: BinaryIO, path: Path) -> bytes:
    """What is left of an opened file. Raises DataError for one with holes, which takes no room until it is read."""
    blocks, size = [], 0
    while block := file.read(_BLOCK_BYTES):
        if block == _HOLE:
            raise DataError(
                f"{path}: 262144 zeros from byte {size} on, as in a file with holes; expected text: copy it again"
            )
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


@contextmanager
def _plain(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """The file, opened once. Raises DataError for a pipe, which would be waited for, and a device, which never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise DataError(f"{path}: a pipe or a device; expected a plain file: write the data into one")
        yield file


def read_text(path: Path) -> str:
    """The file's text, its line ends as one character, without a byte order mark. Raises DataError."""
    data = read_bytes(path)
    mark = len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
    try:
        text = data[mark:].decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text: byte {mark + error.start} is wrong; convert the file to UTF-8 (iconv -f ENCODING -t "
            "UTF-8)"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_compressed_name(name: str) -> bool:
    return name.lower().endswith(COMPRESSED)


def _unread(path: Path, reason: object) -> str:
    return f"{path}: cannot be read: {reason}; copy the file again, or name another place"


def _compression(head: bytes) -> str | None:
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _expanded(file: BinaryIO, kind: str) -> io.RawIOBase:
    match kind:
        case ".gz":
            return _Gzip(file)
        case ".bz2":
            return _Streams(file, bz2.BZ2Decompressor)
        case _:
            return _Streams(file, _xz_stream)


class _Bounded(io.RawIOBase):
    """Another stream, as far as it is not larger than a data file may be."""

    def __init__(self, inner: io.RawIOBase, path: Path, size_bytes: int) -> None:
        self._inner, self._path, self._taken = inner, path, 0
        self._limit = min(MAX_EXPANDED_BYTES, max(_FREE_BYTES, MAX_FOLD * size_bytes))
        self._size = size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._inner.read(len(buffer)) or b""
        self._taken += len(data)
        if self._taken > self._limit:
            raise DataError(
                f"{self._path}: {self._size} bytes that expand to more than {self._limit} (at most {MAX_FOLD} times the "
                f"file's size beyond {_FREE_BYTES >> 20} MiB, and {MAX_EXPANDED_BYTES >> 20} MiB in all); decompress the "
                "file yourself if it is sound, or split it"
            )
        buffer[: len(data)] = data
        return len(data)


class _Gzip(io.RawIOBase):
    """The content of a gzip file. Python's own reader takes a header byte by byte: a name without an end takes minutes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._stream, self._left = file, zlib.decompressobj(wbits=_GZIP), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._stream.eof:
                self._left = _after_padding(self._file, self._left)
                if not self._left:
                    return 0
                self._stream = zlib.decompressobj(wbits=_GZIP)  # files that were put one after another
            given, self._left = self._left, b""
            data = self._stream.decompress(given, len(buffer))  # of nothing too: it may hold some back
            self._left = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not self._left and not self._stream.eof:
                self._left = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not self._left:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")


def _after_padding(file: BinaryIO, left: bytes) -> bytes:
    """What follows a stream, without the zeros that may stand between two; empty at the file's end."""
    while not (left := left.lstrip(b"\x00")):
        if not (left := file.read(io.DEFAULT_BUFFER_SIZE)):
            break
    return left


class _Streams(io.RawIOBase):
    """The content of an xz or a bzip2 file. Python's own readers leave out what follows a stream and is none."""

    def __init__(self, file: BinaryIO, begun: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]) -> None:
        self._file, self._begun, self._stream, self._left = file, begun, begun(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._stream.eof:
                self._left = _after_padding(self._file, self._stream.unused_data)
                if not self._left:
                    return 0
                self._stream = self._begun()  # files that were put one after another
            if self._stream.needs_input and not self._left:
                self._left = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not self._left:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            data, self._left = self._stream.decompress(self._left, len(buffer)), b""
            if data:
                buffer[: len(data)] = data
                return len(data)


def _xz_stream() -> lzma.LZMADecompressor:
    """With a bound on the memory that it may ask for."""
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
