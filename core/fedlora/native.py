"""A shared library from one C source: compiled where it runs, once for each source and flags; checked before trusted."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.files.atomic import whole_file
from fedlora.files.ownership import is_others

Library = TypeVar("Library")

_INSTRUCTION_FLAGS = {
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
}
_TIMEOUT_S = 120
_NOTHING_UNDEFINED = ("-Wl,--no-undefined",) if sys.platform == "linux" else ()  # elsewhere the linker's default


class BuildError(Exception):
    """Why there is no library: caught where something else takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One way to compile and link a source."""

    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One result of a library beside the same by arithmetic that is trusted."""

    what: str
    got: NDArray[Any]
    expected: NDArray[Any]
    tolerance: float  # of the largest expected magnitude


def compiler() -> list[str] | None:
    """The words of $CC, or the first of cc, gcc and clang that is installed."""
    words = shlex.split(os.environ.get("CC", ""))
    if words:
        return words if shutil.which(words[0]) else None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def instruction_flags(name: str) -> tuple[str, ...]:
    """The compiler's flags for an instruction set, avx512 or avx2 in any case; none for a machine's baseline."""
    return _INSTRUCTION_FLAGS.get(name.lower(), ())


def loaded_library(built: Callable[[], Path], load: Callable[[Path], Library]) -> Library:
    """What `load` makes of the library of `built`, which is built again where it was damaged since.

    Raises BuildError, and OSError or AttributeError where the new one does not load either.
    """
    library = built()
    try:
        return load(_kept_open(library))
    except (OSError, AttributeError):
        library.unlink(missing_ok=True)
        return load(_kept_open(built()))


def disagreement(comparisons: Iterable[Comparison], reference: str) -> str | None:
    """The first result that differs by more than its tolerance, and by how much; None where all agree."""
    for each in comparisons:
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN is no agreement either
            difference = np.abs(each.got - each.expected).max() / np.abs(each.expected).max()
        if not difference <= each.tolerance:
            return f"{each.what} differs from {reference} by {difference:.1e}"
    return None


def cached_library(source: Path, name: str, builds: Sequence[Build], *, headers: Sequence[Path] = ()) -> Path:
    """The shared library NAME-HASH.so of `source`, from the cache or compiled now, by the first build that works.

    `headers` are what it includes. Whichever compiler made it, it serves: a machine may lose its compiler and keep its
    libraries. Raises BuildError, also where somebody else could have put the file there.
    """
    texts = [file.read_bytes() for file in (source, *headers)]
    key = hashlib.sha256(repr((texts, builds)).encode()).hexdigest()[:16]
    library = cache_folder() / f"{name}-{key}.so"
    _check_folder(library.parent)
    if not library.is_file():
        _compile(source, library, builds)
    os.close(_opened(library))
    return library


def _compile(source: Path, library: Path, builds: Sequence[Build]) -> None:
    command = compiler()
    if command is None:
        asked = f"$CC is {os.environ['CC']!r}, which" if os.environ.get("CC") else "no C compiler"
        raise BuildError(f"{asked} is not installed")
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(library, is_private=True) as aside:
            _first_that_works(command, source, aside, builds)
            aside.chmod(0o600)  # the linker makes a file of its own
    except (OSError, ConfigError) as error:
        raise BuildError(
            f"{library.parent}: cannot be written: {error}; set FEDLORA_CACHE to a folder that can"
        ) from None
    except subprocess.SubprocessError as error:
        raise BuildError(f"{command[0]}: {error}") from None


def _first_that_works(command: Sequence[str], source: Path, output: Path, builds: Sequence[Build]) -> None:
    unlinked = Path(f"{output}.o")
    try:
        for build in builds:
            try:
                _run(*command, *build.compile_flags, "-c", str(source), "-o", str(unlinked))
                _run(*command, "-shared", str(unlinked), "-o", str(output), *build.link_flags, *_NOTHING_UNDEFINED)
            except BuildError:
                if build is builds[-1]:
                    raise
            else:
                return
    finally:
        unlinked.unlink(missing_ok=True)


def _kept_open(library: Path) -> Path:
    """The library by its descriptor, where the system has such names: what was checked is what is loaded.

    It stays open, for the loader knows a library by its name, and a number that is free is given again.
    """
    descriptor = _opened(library)
    path = Path(f"/proc/self/fd/{descriptor}")
    if path.exists():
        return path
    os.close(descriptor)
    return library


def _opened(library: Path) -> int:
    """A descriptor of the file itself, never of one that a link points to. What is loaded runs as this user: it must be
    nobody else's to write. Raises BuildError."""
    try:
        descriptor = os.open(library, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise BuildError(f"{library}: expected a file, got {error.strerror}; remove it") from None
    if is_others(os.fstat(descriptor)):
        os.close(descriptor)
        raise BuildError(f"{library}: others can write it; remove it, or set FEDLORA_CACHE to a folder of your own")
    return descriptor


def _check_folder(folder: Path) -> None:
    """Raise BuildError for a folder in which somebody else may put another file in the library's place."""
    if folder.exists() and is_others(folder.stat()):
        raise BuildError(
            f"{folder}: others can write into it; close it with chmod 700, or set FEDLORA_CACHE to a folder of your own"
        )


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if result.returncode:
        raise BuildError(f"{command[0]} failed: {result.stderr.strip()[-500:]}")


def cache_folder() -> Path:
    """Where libraries and decisions of this machine are kept: $FEDLORA_CACHE, or fedlora/ in the user's cache.

    Raises BuildError where there is no such place.
    """
    if os.environ.get("FEDLORA_CACHE"):
        return Path(os.environ["FEDLORA_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlora"
    except RuntimeError as error:
        raise BuildError(f"no home directory: {error}; set FEDLORA_CACHE") from None


def read_cached(name: str, max_bytes: int = 1 << 16) -> str | None:
    """The text of a file in the cache; None where there is none. Raises BuildError where somebody else may write it."""
    path = cache_folder() / name
    _check_folder(path.parent)
    if not path.exists():
        return None
    descriptor = _opened(path)
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read(max_bytes).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path}: cannot be read: {error}; remove it") from None


def write_cached(name: str, text: str) -> None:
    """Write a file into the cache, whole. Raises BuildError."""
    path = cache_folder() / name
    _check_folder(path.parent)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(path, is_private=True) as aside:
            aside.write_text(text, encoding="utf-8")
    except (OSError, ConfigError) as error:
        raise BuildError(f"{path}: cannot be written: {error}") from None
