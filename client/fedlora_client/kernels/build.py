"""Compile the kernels with the system's compiler, once for each source and instruction set."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from fedlora.atomic import whole_file
from fedlora.errors import ConfigError

SOURCE = Path(__file__).with_name("kernels.c")
_TIMEOUT_S = 120
_NOTHING_UNDEFINED = ("-Wl,--no-undefined",) if sys.platform == "linux" else ()  # elsewhere the linker's default
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
# By what torch itself found this processor to be able to, which ATEN_CPU_CAPABILITY may lower.
_ISA_FLAGS = {
    "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "AVX2": ("-march=x86-64-v3",),
}


class BuildError(Exception):
    """Why there are no kernels: caught where plain torch takes their place."""


def instruction_set() -> str:
    """AVX512, AVX2, or the machine's baseline by its name (NEON is that of aarch64)."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in _ISA_FLAGS else platform.machine()


def compiler() -> list[str] | None:
    """The words of $CC, or the first of cc, gcc and clang that is installed."""
    words = shlex.split(os.environ.get("CC", ""))
    if words:
        return words if shutil.which(words[0]) else None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def built_library() -> Path:
    """The shared library of the kernels, from the cache or compiled now. Raises BuildError.

    Whichever compiler made it, it serves: a machine may lose its compiler and keep its kernels.
    """
    flags = (*_FLAGS, *_ISA_FLAGS.get(instruction_set(), ()))
    openmp = _openmp_of_torch()
    key = hashlib.sha256(repr((SOURCE.read_bytes(), flags, openmp)).encode()).hexdigest()[:16]
    library = _cache() / f"kernels-{instruction_set().lower()}-{key}.so"
    if not library.is_file():
        _compile(library, flags, openmp)
    _check_owner(library)
    return library


def _compile(library: Path, flags: tuple[str, ...], openmp: Path | None) -> None:
    command = compiler()
    if command is None:
        asked = f"$CC is {os.environ['CC']!r}, which" if os.environ.get("CC") else "no C compiler"
        raise BuildError(f"{asked} is not installed")
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(library) as aside:
            unlinked = Path(f"{aside}.o")
            try:
                _run(*command, *flags, "-fopenmp", "-c", str(SOURCE), "-o", str(unlinked))
                # Linked against the very library that torch runs on: one pool of threads, not two.
                libraries = [*([str(openmp)] if openmp else []), "-lm", *_NOTHING_UNDEFINED]
                _run(*command, "-shared", str(unlinked), "-o", str(aside), *libraries)
            except BuildError:  # no OpenMP, or another than this compiler's: the kernels then run on one thread
                _run(*command, *flags, "-fopenmp-simd", "-c", str(SOURCE), "-o", str(unlinked))
                _run(*command, "-shared", str(unlinked), "-o", str(aside), "-lm", *_NOTHING_UNDEFINED)
            finally:
                unlinked.unlink(missing_ok=True)
        library.chmod(0o600)
    except (OSError, ConfigError) as error:
        raise BuildError(
            f"{library.parent}: cannot be written: {error}; set FEDLORA_CACHE to a folder that can"
        ) from None
    except subprocess.SubprocessError as error:
        raise BuildError(f"{command[0]}: {error}") from None


def _check_owner(library: Path) -> None:
    """What is loaded runs as this user: it must be nobody else's to write."""
    status = library.stat()
    if hasattr(os, "getuid") and (status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022):
        raise BuildError(f"{library}: others can write it; remove it, or set FEDLORA_CACHE to a folder of your own")


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if result.returncode:
        raise BuildError(f"{command[0]} failed: {result.stderr.strip()[-500:]}")


def _openmp_of_torch() -> Path | None:
    """The OpenMP library that is loaded into this process: torch's, where others brought theirs."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = [
        line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/") and len(line.split(maxsplit=5)) == 6
    ]
    found = [path for path in paths if re.match(r"lib(gomp|iomp5|omp)\b.*\.so", Path(path).name)]
    found.sort(key=lambda path: "/torch/" not in path)
    return Path(found[0]) if found else None


def _cache() -> Path:
    if os.environ.get("FEDLORA_CACHE"):
        return Path(os.environ["FEDLORA_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlora"
    except RuntimeError as error:
        raise BuildError(f"no home directory: {error}; set FEDLORA_CACHE") from None
