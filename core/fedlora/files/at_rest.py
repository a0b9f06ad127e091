"""Files that are encrypted where they lie: adapters, kept factors, states of trainings. Off until a key is named.

    file = "fedlora-at-rest1" [16] | id of the wrapping key [8] | data key, wrapped (RFC 3394) [40] | stream
    associated data of the stream = "fedlora-at-rest1" | size of the content (uint64, big endian) | name of the file, UTF-8

Each file has a data key of its own. The stream is Tink's (`streaming_aead`): a byte that changed, a file that was cut off,
renamed or put together from others is refused with one error. What is named by a digest is named by that of its content, so
that a run's records hold whatever key its files lie under. Whoever reads takes both, plain and encrypted files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AtRestError
from fedlora.files.at_rest_key import ID_BYTES, VARIABLE, WRAPPED_BYTES, WrappingKey, check_id, placed_source, read_key
from fedlora.files.atomic import whole_file
from fedlora.files.bounded import read_open
from fedlora.files.streaming_aead import KEY_BYTES, StreamError, StreamWriter, plain_bytes, read_stream

MAGIC = b"fedlora-at-rest1"
PREAMBLE_BYTES = len(MAGIC) + ID_BYTES + WRAPPED_BYTES
_CHUNK = 1 << 18
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for
_keys: dict[str, WrappingKey] = {}  # by their sources, which are read once a process
_is_plain: ContextVar[bool] = ContextVar("is_plain", default=False)


class Writable(Protocol):
    """What a file is written to."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int: ...

    def tell(self) -> int: ...


def use_key(source: str, folder: Path = Path()) -> None:
    """Encrypt with the key of `source` from now on, in this process and those that it starts; "": of the environment's.

    A relative path counts from `folder`. Raises ConfigError where that key cannot be had.
    """
    if source or (source := os.environ.get(VARIABLE, "")):
        source = placed_source(source, folder)
        _keys[source] = read_key(source)
        os.environ[VARIABLE] = source


def current_key() -> WrappingKey | None:
    """What files are encrypted with here; None: they are not. Raises ConfigError where it cannot be had."""
    source = os.environ.get(VARIABLE, "")
    if not source:
        return None
    if source not in _keys:
        _keys[source] = read_key(source)
    return _keys[source]


def encrypts() -> bool:
    """Whether what is written now will be encrypted."""
    return not _is_plain.get() and current_key() is not None


@contextmanager
def written_plain() -> Iterator[None]:
    """What is written in the block is for others, who have no key."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


@contextmanager
def written(path: Path, name: str, size_bytes: int) -> Iterator[Writable]:
    """`path`, opened to write just `size_bytes` to; encrypted, as a file called `name`, where there is a key."""
    key = current_key() if encrypts() else None
    with path.open("wb") as file:
        if key is None:
            yield file
            return
        data_key = os.urandom(KEY_BYTES)
        file.write(MAGIC + key.id + key.wrap(data_key))
        stream = StreamWriter(file, data_key, _associated(name, size_bytes))
        yield stream
        if stream.tell() != size_bytes:
            raise AssertionError(f"{name}: planned {size_bytes} bytes, wrote {stream.tell()}")
        stream.finish()


def is_encrypted(file: BinaryIO) -> bool:
    """Whether an open file, at its beginning, is encrypted at rest; it is at its beginning afterwards."""
    head = file.read(len(MAGIC))
    file.seek(0)
    return head == MAGIC


def decrypted(file: BinaryIO, path: Path, key: WrappingKey | None = None) -> NDArray[np.uint8]:
    """The content of an open encrypted file, all of it verified, in memory. Raises AtRestError."""
    content = np.empty(plain_size_of(file, path), np.uint8)
    begin = 0
    for part in _segments(file, path, key):
        content[begin : begin + len(part)] = part
        begin += len(part)
    return content


def plain_chunks(path: Path) -> Iterator[memoryview]:
    """The content of a file, encrypted or not, part by part; each is valid until the next. Raises OSError, AtRestError.

    It is whole once all parts were had.
    """
    with _opened(path) as file:
        yield from plain_parts(file, path)


def plain_size(path: Path) -> int:
    """How many bytes a file holds, encrypted or not, as far as its size tells. Raises OSError, AtRestError."""
    with _opened(path) as file:
        return plain_size_of(file, path)


def plain_parts(file: BufferedReader, path: Path) -> Iterator[memoryview]:
    """As `plain_chunks`, of a file that is open, at its beginning."""
    if is_encrypted(file):
        yield from _segments(file, path, None)
    else:
        buffer = memoryview(bytearray(_CHUNK))
        while size := file.readinto(buffer):
            yield buffer[:size]


def plain_size_of(file: BinaryIO, path: Path) -> int:
    """How many bytes an open file, at its beginning, holds. Raises AtRestError where no encrypted one has its size."""
    size = os.fstat(file.fileno()).st_size
    if not is_encrypted(file):
        return size
    try:
        return plain_bytes(size - PREAMBLE_BYTES)
    except StreamError:
        raise _damaged(path) from None


def plain_digest(path: Path) -> str:
    """The sha256 of a file's content, encrypted or not. Raises OSError, AtRestError."""
    digest = hashlib.sha256()
    for part in plain_chunks(path):
        digest.update(part)
    return digest.hexdigest()


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The content of a plain file, encrypted or not, as `read_bounded` gives it. Raises OSError, AtRestError."""
    with _opened(path) as file:
        if not is_encrypted(file):
            return read_open(file, path, max_bytes)
        if plain_size_of(file, path) > max_bytes:
            raise OSError(errno.EFBIG, f"more than {max_bytes} bytes", str(path))
        return decrypted(file, path).tobytes()


def copy_plain(source: Path, target: Path) -> None:
    """Write the content of a file, encrypted or not, as a plain one. Raises OSError, AtRestError."""
    with target.open("wb") as file:
        for part in plain_chunks(source):
            file.write(part)


def write_bytes(path: Path, name: str, content: bytes | memoryview) -> None:
    """Write a file that is in memory; encrypted, as one called `name`, where there is a key."""
    with written(path, name, memoryview(content).nbytes) as file:
        file.write(content)


def key_id_of(path: Path) -> str:
    """The id of the key that a file is encrypted under; "" for a plain one. Raises OSError."""
    with _opened(path) as file:
        return file.read(PREAMBLE_BYTES)[len(MAGIC) : -WRAPPED_BYTES].hex() if is_encrypted(file) else ""


def rewrap(path: Path, old: WrappingKey, new: WrappingKey) -> None:
    """Wrap a file's data key by another key; its content is verified, and stays as it is. The file appears whole.

    Raises OSError, and AtRestError where it is not under `old`.
    """
    with _opened(path) as file, whole_file(path, is_private=True) as aside:
        for _ in _segments(file, path, old):
            pass
        file.seek(0)
        data_key = _data_key(file.read(PREAMBLE_BYTES), path, old)
        with aside.open("wb") as copy:
            copy.write(MAGIC + new.id + new.wrap(data_key))
            shutil.copyfileobj(file, copy, _CHUNK)
        shutil.copymode(path, aside)


def wrap(path: Path) -> None:
    """Encrypt a plain file where it lies, if there is a key: whole, or it stays as it is. Raises OSError."""
    if encrypts() and not key_id_of(path):
        with whole_file(path, is_private=True) as aside:
            with _opened(path) as file, written(aside, path.name, os.fstat(file.fileno()).st_size) as copy:
                while part := file.read(_CHUNK):
                    copy.write(part)
            shutil.copymode(path, aside)


def unwrap(path: Path, old: WrappingKey) -> None:
    """Write an encrypted file as a plain one, whole or not at all. Raises as `rewrap`."""
    with _opened(path) as file, whole_file(path, is_private=True) as aside:
        with aside.open("wb") as copy:
            for part in _segments(file, path, old):
                copy.write(part)
        shutil.copymode(path, aside)


def _segments(file: BinaryIO, path: Path, key: WrappingKey | None) -> Iterator[memoryview]:
    """The verified content of an open encrypted file, from its beginning."""
    size = plain_size_of(file, path)
    data_key = _data_key(file.read(PREAMBLE_BYTES), path, key)
    stream_bytes = os.fstat(file.fileno()).st_size - PREAMBLE_BYTES
    try:
        yield from read_stream(file, stream_bytes, data_key, _associated(path.name, size))
    except StreamError:
        raise _damaged(path) from None


def _data_key(preamble: bytes, path: Path, key: WrappingKey | None) -> bytes:
    begin, end = len(MAGIC), len(MAGIC) + ID_BYTES
    if len(preamble) != PREAMBLE_BYTES or preamble[:begin] != MAGIC:
        raise _damaged(path)
    found = check_id(key or current_key(), preamble[begin:end], str(path))
    try:
        return found.unwrap(preamble[end:])
    except ValueError:
        raise _damaged(path) from None


def _associated(name: str, size_bytes: int) -> bytes:
    return MAGIC + size_bytes.to_bytes(8, "big") + os.fsencode(name)


def _damaged(path: Path) -> AtRestError:
    return AtRestError(
        f"{path}: encrypted at rest, and not what was written under this name: it was changed, cut off, renamed or put "
        "together from others; take it from a copy"
    )


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """A plain file, opened once: what is looked at is what is read. Raises OSError."""
    descriptor = os.open(path, _FLAGS)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        yield file
