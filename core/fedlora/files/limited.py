"""A script that runs within bounds of the system's: python limited.py CPU_S,MEMORY_BYTES,FILE_BYTES SCRIPT ARGUMENTS...

For a process of ours that reads what a stranger sent: whatever that makes of it, it costs this process alone. 0: no bound.
The file is started by its path, without fedlora.
"""

import runpy
import sys
from contextlib import suppress


def limited(script: str, *, cpu_s: int = 0, memory_bytes: int = 0, file_bytes: int = 0) -> list[str]:
    """What follows `python` to run `script` so; the bounds: processor time, addresses, and each file that it writes."""
    return [__file__, f"{cpu_s},{memory_bytes},{file_bytes}", script]


def _limit(cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    bounds = ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, file_bytes))
    for kind, most in (*((kind, most) for kind, most in bounds if most), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(kind)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _limit(*(int(bound) for bound in sys.argv[1].split(",")))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
