"""The source of the running interpreter's standard library: real text, on every machine, nothing downloaded.

`HELD_OUT` packages belong to devices: one package, one device. Everything else is what `fedlora-nano` was pre-trained
on (`core/nano/pretrain.py`), so that a device's text is new to the base it adapts.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedlora.datasets import DeviceData, partition_of, split_lines
from fedlora.errors import DataError
from fedlora.run_config import DataConfig, Scalar

# Packages (not single modules) that every CPython from 3.11 to 3.13 carries as Python source. The four smallest and the
# four largest come first: eight devices differ in how much they have as much as they can.
HELD_OUT = (
    "dbm", "curses", "tomllib", "zoneinfo", "asyncio", "email", "xml", "multiprocessing",
    "json", "collections", "wsgiref", "ctypes", "concurrent", "xmlrpc", "html", "urllib",
    "logging", "http", "importlib", "unittest",
)  # fmt: skip

# Tables and deliberately broken files: no text to learn from.
_NOT_TEXT = ("encodings", "site-packages", "lib-dynload", "__pycache__", "bad", "pydoc_data")


def stdlib_directory() -> Path:
    """The directory that holds the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def package_files(package: str) -> list[Path]:
    """Every source file of one standard-library package, in a fixed order, without its tests."""
    root = stdlib_directory()
    files = (root / package).rglob("*.py")
    return sorted(f for f in files if not {"test", "tests"} & set(f.relative_to(root).parts))


def stdlib(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """The data set `stdlib`: device i holds the i-th held-out package; the last 10% of each file is held out."""
    package = HELD_OUT[partition_of(node, len(HELD_OUT), "the list of held-out packages")]
    parts = [split_lines(file.read_text(encoding="utf-8")) for file in package_files(package)]
    if not parts:
        raise DataError(f"{stdlib_directory() / package}: this Python has no source of {package}; install it whole")
    train, held_out = zip(*parts, strict=True)
    return DeviceData(name=package, train=tuple(filter(None, train)), held_out=tuple(filter(None, held_out)))


def pretraining_documents() -> Iterator[tuple[str, str]]:
    """(name, text) of everything `fedlora-nano` may read: no held-out package and no test of one."""
    from pydoc_data.topics import topics

    root = stdlib_directory()
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if any(word in name for word in (*HELD_OUT, *_NOT_TEXT)):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) > 200:
            yield name, text
    for name, text in sorted(topics.items()):
        yield f"topics/{name}", text


def digest(documents: list[tuple[str, str]]) -> str:
    """sha256 over names and texts, in the order of the names: equal where two machines train on the same corpus."""
    sha = hashlib.sha256()
    for name, text in sorted(documents):
        sha.update(f"{name}\0{text}\0".encode())
    return sha.hexdigest()
