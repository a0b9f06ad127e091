"""Become a command that ends when the process that started it does: python dies_with_parent.py PARENT COMMAND...

A server that is killed leaves no SuperLink behind that holds its port. A script by itself: it imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(sys.argv[1]):  # it died before
            sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])
