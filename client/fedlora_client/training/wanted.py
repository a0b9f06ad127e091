"""Whether anybody still waits for what a thread computes.

A thread cannot be ended from outside. Whoever gives up what he asked a thread for lets it know here, and a training or a
measurement ends before its next part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fedlora.errors import RunError

_IS_WANTED: ContextVar[Callable[[], bool]] = ContextVar("is_wanted", default=lambda: True)


@contextmanager
def while_wanted(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """In the block, what this thread computes goes on only for as long as `is_wanted` says so."""
    before = _IS_WANTED.set(is_wanted)
    try:
        yield
    finally:
        _IS_WANTED.reset(before)


def check_wanted() -> None:
    """Raise RunError where nobody waits for what this thread computes any more."""
    if not _IS_WANTED.get()():
        raise RunError("nobody waits for this device any more: its round is over")
