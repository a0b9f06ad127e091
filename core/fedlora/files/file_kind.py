"""What a file is, by its first bytes: told where something else was expected.

A download that went wrong leaves a pointer, a web page or nothing at all under the name of the file that was wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_READ_BYTES = 1024
_SHOWN = 48  # characters of a text
_LEAST_TEXT = 9  # characters: fewer may be the beginning of anything


@dataclass(frozen=True, slots=True)
class FileKind:
    """What lies there, and one thing to do about it."""

    name: str
    remedy: str
    is_text: bool = False

    def instead_of(self, path: Path, expected: str) -> str:
        """The sentence of a refusal: where, what is there, what was expected, what to do."""
        return f"{path}: {self.name}; expected {expected}; {self.remedy}"


_AGAIN = "copy or download the file again"
_POINTER = FileKind(
    "a git-lfs pointer, not the file that it stands for", "fetch the files in the clone with: git lfs pull"
)
_WEB_PAGE = FileKind("a web page, not the file", "download the file itself, for example with: hf download MODEL-ID")
_EMPTY = FileKind("truncated: an empty file of 0 bytes", _AGAIN)
_ZEROS = FileKind("nothing but zero bytes", _AGAIN)
_GGUF = FileKind(
    "a GGUF file, the format of llama.cpp, whose weights are quantized or reordered",
    "take the unquantized checkpoint in the safetensors format that it was made from",
)
_PICKLE = FileKind(
    "a PyTorch pickle, which runs code when it is read",
    "load it with the library that wrote it, and save it as safetensors: model.save_pretrained(DIRECTORY)",
)
_NUMPY = FileKind("a NumPy archive", "save the tensors with safetensors.numpy.save_file")


def _packed(name: str, command: str) -> FileKind:
    return FileKind(f"compressed with {name}", f"unpack it first: {command}")


def _zip_kind(head: bytes) -> FileKind:
    if b"data.pkl" in head or b"/version" in head:
        return _PICKLE
    return _NUMPY if b".npy" in head else FileKind("a zip archive", "unpack it first: unzip FILE")


_BEGINNINGS: tuple[tuple[bytes, FileKind | Callable[[bytes], FileKind]], ...] = (
    (b"version https://git-lfs.github.com/spec/", _POINTER),
    (b"version https://hawser.github.com/spec/", _POINTER),  # its name before
    (b"GGUF", _GGUF),
    (b"lmgg", _GGUF), (b"tjgg", _GGUF), (b"fmgg", _GGUF),  # what came before it
    (b"PK\x03\x04", _zip_kind),
    (b"\x80\x02", _PICKLE), (b"\x80\x03", _PICKLE), (b"\x80\x04", _PICKLE), (b"\x80\x05", _PICKLE),
    (b"\x93NUMPY", _NUMPY),
    (b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file, as Keras writes it", _PICKLE.remedy)),
    (b"\x1f\x8b\x08", _packed("gzip", "gunzip FILE")),
    (b"BZh", _packed("bzip2", "bunzip2 FILE")),
    (b"\xfd7zXZ\x00", _packed("xz", "unxz FILE")),
    (b"\x28\xb5\x2f\xfd", _packed("zstd", "unzstd FILE")),
    (b"7z\xbc\xaf\x27\x1c", _packed("7-Zip", "7z x FILE")),
)  # fmt: skip
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")


def kind_of(path: Path) -> FileKind | None:
    """What the first bytes of `path` say that it is; None for binary data of no kind that is known, and for no file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            head = file.read(_READ_BYTES)
    except OSError:
        return None
    if not head:
        return _EMPTY
    if head[4:9] == b"\0\0\0\0{":  # safetensors: the length of its header may look like any other beginning
        return None
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind if isinstance(kind, FileKind) else kind(head)
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", "unpack it first: tar xf FILE")
    if head.lstrip().lower().startswith(_MARKUP):
        return _WEB_PAGE
    if len(head) >= 16 and not any(head):
        return _ZEROS
    return _text_kind(head)


def _text_kind(head: bytes) -> FileKind | None:
    """A text is shown: what a server answers instead of a file often says why."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a character was cut by our own reading
            return None
        text = head[: error.start].decode("utf-8")
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    shown = " ".join(text.split())
    if len(shown) < _LEAST_TEXT:
        return None
    return FileKind(f"a text that begins {shown[:_SHOWN]!r}", _AGAIN, is_text=True)
