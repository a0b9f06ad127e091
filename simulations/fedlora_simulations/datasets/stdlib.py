"""The source of the running interpreter's standard library: real text, on every machine, nothing downloaded.

`HELD_OUT` packages belong to devices: one package, one device; with more devices, the files of the largest packages are
dealt out to several. Everything else is what `fedlora-nano` was pre-trained
on (`tools/nano/pretrain.py`), so that a device's text is new to the base it adapts.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from fedlora.config.run import DataConfig, Scalar
from fedlora.data.datasets import DeviceData, partition_of, split_lines
from fedlora.errors import DataError

# Packages (not single modules) that every CPython from 3.11 to 3.13 carries as Python source. The four smallest and the
# four largest come first: eight devices differ in how much they have as much as they can.
HELD_OUT = (
    "dbm", "curses", "tomllib", "zoneinfo", "asyncio", "email", "xml", "multiprocessing",
    "json", "collections", "wsgiref", "ctypes", "concurrent", "xmlrpc", "html", "urllib",
    "logging", "http", "importlib", "unittest",
)  # fmt: skip

_LEAST_BYTES = 2000  # of the largest file of a device

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
    """The data set `stdlib`: device i holds the i-th held-out package; the last 10% of each file is held out.

    With more devices than packages, each further device shares the package that has the most text for one device, as long
    as each has a file to learn from: `asyncio`, `asyncio-2`, `asyncio-3`, ...
    """
    devices = node.get("num-partitions")
    deal = _dealt(devices if type(devices) is int and devices > len(HELD_OUT) else len(HELD_OUT))
    name, files = deal[partition_of(node, len(deal), "the list of held-out packages")]
    parts = [split_lines(file.read_text(encoding="utf-8")) for file in files]
    if not parts:
        raise DataError(f"{stdlib_directory() / name}: this Python has no source of {name}; install it whole")
    train, held_out = zip(*parts, strict=True)
    return DeviceData(name=name, train=tuple(filter(None, train)), held_out=tuple(filter(None, held_out)))


@lru_cache(maxsize=16)
def _dealt(devices: int) -> tuple[tuple[str, tuple[Path, ...]], ...]:
    """(name, files) of each device. Raises DataError for more devices than there is text for."""
    files = {package: package_files(package) for package in HELD_OUT}
    if devices == len(HELD_OUT):
        return tuple((package, tuple(found)) for package, found in files.items())
    sizes = {file: file.stat().st_size for found in files.values() for file in found}
    bytes_of = {package: sum(sizes[file] for file in found) for package, found in files.items()}
    most = {package: max(1, sum(sizes[file] >= _LEAST_BYTES for file in found)) for package, found in files.items()}
    if devices > sum(most.values()):
        raise DataError(
            f"simulation.devices is {devices}; the held-out packages of the standard library have text for "
            f"{sum(most.values())}: lower it"
        )
    shares, owners = dict.fromkeys(HELD_OUT, 1), list(HELD_OUT)
    while len(owners) < devices:
        open_ones = [package for package in HELD_OUT if shares[package] < most[package]]
        package = max(open_ones, key=lambda package: bytes_of[package] / shares[package])
        shares[package] += 1
        owners.append(package)
    parts = {package: _parts(files[package], sizes, shares[package]) for package in HELD_OUT}
    deal, dealt = [], Counter[str]()
    for package in owners:
        number = dealt[package]
        deal.append((f"{package}-{number + 1}" if number else package, parts[package][number]))
        dealt[package] += 1
    return tuple(deal)


def _parts(files: Sequence[Path], sizes: Mapping[Path, int], count: int) -> list[tuple[Path, ...]]:
    """The files in `count` parts: the largest first, each to the part that has the least."""
    parts: list[list[Path]] = [[] for _ in range(count)]
    for file in sorted(files, key=lambda file: -sizes[file]):
        min(parts, key=lambda part: sum(sizes[other] for other in part)).append(file)
    return [tuple(sorted(part)) for part in parts]


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
