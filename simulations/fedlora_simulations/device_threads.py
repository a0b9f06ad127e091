"""The threads in which the devices of a simulation work.

Whoever closes them waits for nobody: a round that was given up, or a Ctrl-C, ends the command, not the slowest device.
What a device still computes then ends before its next part, and is no reason for the process to stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import torch
from fedlora.threads import leave_behind
from fedlora_client.training.wanted import while_wanted

Input = TypeVar("Input")
Output = TypeVar("Output")

_LAST_WAIT_S = 0.2  # for a device that is about to see that nobody waits for it

_Job = tuple[Future[Any], Callable[[], Any]]


class DeviceThreads:
    """Up to `workers` threads, each with so many cores; they are begun as there is work for them."""

    def __init__(self, workers: int, cores_each: int = 1) -> None:
        self._workers, self._cores_each = workers, cores_each
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, work: Callable[[], Output]) -> Future[Output]:
        """What `work` gives, once a thread has done it; a training in it ends early where the threads are closed."""
        future: Future[Output] = Future()
        self._jobs.put((future, work))
        if len(self._threads) < self._workers:
            name = f"device-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        return future

    def map(self, work: Callable[[Input], Output], inputs: Iterable[Input]) -> Iterator[Output]:
        """What `work` gives for each of `inputs`, in their order. Raises what it raises."""
        futures = [self.submit(lambda one=one: work(one)) for one in inputs]  # type: ignore[misc]
        for future in futures:
            yield future.result()

    def close(self) -> None:
        """Take no more work, and leave those who are at work behind."""
        self.closed = True
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _LAST_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        leave_behind(thread for thread in self._threads if thread.is_alive())

    def _work(self) -> None:
        torch.set_num_threads(self._cores_each)
        while (job := self._jobs.get()) is not None:
            future, work = job
            if self.closed:
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    with while_wanted(lambda: not self.closed):
                        future.set_result(work())
                except BaseException as error:  # it is raised to whoever asks for the result
                    future.set_exception(error)
                del work
            del future, job
