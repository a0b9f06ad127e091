"""How many threads there is room for, how they wait for each other, and those for which nobody waits.

OpenMP's threads spin while they wait, which costs nothing on an idle machine; where another process wants the core, the
one that works is not scheduled while the one that waits burns its time, and training falls to a fraction of one thread's.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable
from threading import Thread

_POLICY = "OMP_WAIT_POLICY"
_LAST_WAIT_S = 10.0
_behind: list[Thread] = []


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    OpenMP reads this once, when it is loaded: the packages that import torch call this first.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(_POLICY, "passive")


def may_spin() -> bool:
    """Whether the environment asks for threads that spin: for those of other libraries than OpenMP."""
    return os.environ.get(_POLICY, "").lower() == "active"


def waiting() -> str:
    """How OpenMP's threads wait in this process: what `wait_without_spinning` came to, for a person."""
    policy = os.environ.get(_POLICY, "").lower()
    if policy == "passive":
        return "sleeping"
    if policy:
        return f"spinning ({_POLICY}={policy}): slow beside other work"
    return f"spinning (torch was imported before fedlora): slow beside other work; set {_POLICY}=passive"


def leave_behind(threads: Iterable[Thread]) -> None:
    """Remember daemon threads that still work though nobody needs it: an interpreter must not end under their feet."""
    if not _behind:
        atexit.register(_wait_for_those_behind)
    _behind.extend(threads)


def any_left_behind() -> bool:
    """Whether threads that were left behind are still at work."""
    return any(thread.is_alive() for thread in _behind)


def _wait_for_those_behind() -> None:
    deadline = time.monotonic() + _LAST_WAIT_S
    for thread in _behind:
        thread.join(max(0.0, deadline - time.monotonic()))
