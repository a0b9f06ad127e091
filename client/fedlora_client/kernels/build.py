"""Compile the kernels with the system's compiler, once for each source and instruction set."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch
from fedlora.atomic import whole_file
from fedlora.errors import ConfigError

SOURCE = Path(__file__).with_name("kernels.c")
_TIMEOUT_S = 120
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp")
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


def compiler() -> str | None:
    """$CC, or the first of cc, gcc and clang that is installed."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next(filter(None, map(shutil.which, names)), None)


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
    return library


def _compile(library: Path, flags: tuple[str, ...], openmp: Path | None) -> None:
    command = compiler()
    if command is None:
        raise BuildError("no C compiler is installed")
    try:
        with whole_file(library) as aside:
            unlinked = Path(f"{aside}.o")
            try:
                # Linked without -fopenmp, against the very library that torch runs on: one pool of threads, not two.
                _run(command, *flags, "-c", str(SOURCE), "-o", str(unlinked))
                _run(command, "-shared", str(unlinked), "-o", str(aside), *([str(openmp)] if openmp else []), "-lm")
            finally:
                unlinked.unlink(missing_ok=True)
    except (OSError, subprocess.SubprocessError, ConfigError) as error:
        raise BuildError(f"{command}: {error}") from None


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
    found = re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*\.so\S*", maps)
    found.sort(key=lambda path: "/torch/" not in path)
    return Path(found[0]) if found else None


def _cache() -> Path:
    if os.environ.get("FEDLORA_CACHE"):
        return Path(os.environ["FEDLORA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlora"
