"""A shared library for another processor, whose functions run there under an emulator."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
_ROOT = "/usr/aarch64-linux-gnu"  # where Debian's cross compiler keeps the loader and the libraries of its programs
_DRIVER = Path(__file__).with_name("driver.c")
_INTEGER, _FLOAT, _POINTER = range(3)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A place in a block of bytes, which the function may read and write."""

    block: NDArray[np.uint8]
    offset: int = 0


Argument = int | float | Pointer | None


def missing() -> str:
    """What is not installed of what this needs; empty where nothing is."""
    return " and ".join(name for name in (COMPILER, EMULATOR) if not shutil.which(name))


def compiled(source: Path, library: Path, flags: Sequence[str], link_flags: Sequence[str] = ()) -> Path:
    """The shared library of a C source, for aarch64."""
    _run(COMPILER, *flags, "-shared", str(source), "-o", str(library), *link_flags)
    return library


@dataclass(frozen=True)
class RemoteLibrary:
    """A library in a process of the emulator. What it is given stays in its memory until it ends."""

    process: subprocess.Popen[bytes]

    def call(self, name: str, *arguments: Argument) -> int:
        """What the function returned; the blocks that its pointers stand in are as it left them."""
        blocks = list({id(each.block): each.block for each in arguments if isinstance(each, Pointer)}.values())
        number = {id(block): place for place, block in enumerate(blocks)}
        call = [struct.pack("64sqq", name.encode(), len(blocks), len(arguments))]
        for block in blocks:
            call += [struct.pack("q", block.size), block.tobytes()]
        for each in arguments:
            if isinstance(each, Pointer):
                call.append(struct.pack("qqq", _POINTER, number[id(each.block)], each.offset))
            elif isinstance(each, float):
                call.append(struct.pack("qfiq", _FLOAT, each, 0, 0))
            else:
                call.append(struct.pack("qqq", _INTEGER, each or 0, 0))
        assert self.process.stdin
        self.process.stdin.write(b"".join(call))
        self.process.stdin.flush()
        (returned,) = struct.unpack("q", self._read(8))
        for block in blocks:
            after = np.frombuffer(self._read(block.size), np.uint8)
            if block.flags.writeable:
                block[:] = after
            else:
                assert np.array_equal(block, after), f"{name} wrote into what it may only read"
        return int(returned)

    def _read(self, size: int) -> bytes:
        assert self.process.stdout
        data = self.process.stdout.read(size)
        assert len(data) == size, f"the emulator ended with {self.process.wait(10)}"
        return data


@contextmanager
def remote_library(library: Path) -> Iterator[RemoteLibrary]:
    """The library, loaded on the emulated processor."""
    driver = library.with_name("driver")
    _run(COMPILER, "-O1", "-std=gnu11", str(_DRIVER), "-o", str(driver), "-ldl")
    with subprocess.Popen(
        [EMULATOR, "-L", _ROOT, str(driver), str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield RemoteLibrary(process)
        finally:
            if process.stdin:
                process.stdin.close()
            process.wait(10)


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert not result.returncode, result.stderr[-2000:]
