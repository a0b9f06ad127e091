"""The kernels' library: compiled for what torch finds this processor able to do, and linked to torch's own threads."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch
from fedlora.native import Build, cached_library, instruction_flags

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")


def instruction_set() -> str:
    """AVX512, AVX2, or the machine's baseline by its name (NEON is that of aarch64).

    By what torch itself found this processor to be able to, which ATEN_CPU_CAPABILITY may lower.
    """
    found = torch.backends.cpu.get_cpu_capability()
    return found if instruction_flags(found) else platform.machine()


def built_library() -> Path:
    """The shared library of the kernels, from the cache or compiled now. Raises BuildError."""
    flags = (*_FLAGS, *instruction_flags(instruction_set()))
    openmp = _openmp_of_torch()
    # Linked against the very library that torch runs on: one pool of threads, not two.
    threaded = Build(compile_flags=(*flags, "-fopenmp"), link_flags=(*([str(openmp)] if openmp else []), "-lm"))
    # No OpenMP, or another than this compiler's: the kernels then run on one thread.
    alone = Build(compile_flags=(*flags, "-fopenmp-simd"), link_flags=("-lm",))
    return cached_library(SOURCE, f"kernels-{instruction_set().lower()}", (threaded, alone))


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
