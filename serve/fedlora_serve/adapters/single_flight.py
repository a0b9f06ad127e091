"""Work that several ask for at a time, done once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """One call at a time for each key; whoever asks while it runs gets what it gives, or raises what it raises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, Future[T]] = {}

    def do(self, key: Hashable, call: Callable[[], T]) -> T:
        """What `call` gives, called here, or by another thread that came first."""
        with self._lock:
            future = self._running.get(key)
            if future is None:
                mine = self._running[key] = Future()
        if future is not None:
            return future.result()
        try:
            result = call()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(result)
            return result
        finally:
            with self._lock:
                del self._running[key]
