"""Work off the event loop, in a few threads that are shared fairly: those who asked take turns, whoever asked for more."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


class FairThreads:
    """So many threads. Each who asks has a queue of their own; next comes the first of whoever had a turn longest ago."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._queues: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()  # none empty
        self._lock = threading.Lock()

    def submit(self, share: str, work: Callable[[], _T]) -> Future[_T]:
        """What `work` returns, once it is its turn. One that is cancelled before is not done."""
        future: Future[_T] = Future()
        with self._lock:
            self._queues.setdefault(share, deque()).append((future, work))
        self._pool.submit(self._do_next)
        return future

    async def run(self, share: str, work: Callable[[], _T]) -> _T:
        """The same, for who waits on an event loop; work that nobody waits for any more is not begun."""
        return await asyncio.wrap_future(self.submit(share, work))

    def _do_next(self) -> None:
        with self._lock:
            share, queue = self._queues.popitem(last=False)
            future, work = queue.popleft()
            if queue:
                self._queues[share] = queue
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
