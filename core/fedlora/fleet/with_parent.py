"""A child that ends when the process that started it does: python with_parent.py SIGNAL PARENT PROGRAM ARGUMENTS...

A supervisor that is killed leaves nothing behind that holds a port or a lock. The file is started by its path, without
fedlora: between a fork and its exec, a process of several threads may do next to nothing.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def with_parent(end: signal.Signals) -> list[str]:
    """What to put before a command so that its process gets `end` when this one dies, by its thread that starts it."""
    return [sys.executable, "-I", "-S", __file__, str(int(end)), str(os.getpid())]


if __name__ == "__main__":
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(_PR_SET_PDEATHSIG, int(sys.argv[1]), 0, 0, 0)
    if os.getppid() != int(sys.argv[2]):  # it died before
        sys.exit("the parent has gone")
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.exit(f"{sys.argv[3]}: {error.strerror}")
