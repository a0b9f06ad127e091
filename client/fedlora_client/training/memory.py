"""What this process takes of the machine's memory, and what is left of it."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUP = "/sys/fs/cgroup"  # of version 2, as a container sees its own
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def resident_bytes() -> int:
    """Physical memory that the process takes now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """What the machine, or the container, can give without swapping."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used, stat = (Path(_CGROUP, f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        cached = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)
        left = free if limit.strip() == "max" else int(limit) - int(used) + int(cached[1] if cached else 0)
        return max(0, min(free, left))
    except (OSError, ValueError):
        return free


def peak_bytes() -> int:
    """The most that the process has taken since it began, or since `forget_peak`."""
    try:  # getrusage would begin at what the parent had when it forked
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let the peak begin anew, where the kernel can: a resident process tells that of each piece of work."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # only that, says proc(5)


def give_back_freed() -> None:
    """Return memory that was freed to the system, where the C library can."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


def give_back_large_blocks() -> None:
    """From now on, return every large block to the system as soon as it is freed.

    glibc would learn to keep blocks of up to 32 MB: activations of changing sizes then leave holes as large as themselves.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_MMAP_THRESHOLD, 1 << 20)
