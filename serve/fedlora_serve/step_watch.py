"""Whether the runtime's steps end, which no bound of ours can promise: a disk that hangs, a fault of the runtime's own.

A step may take twenty times what its tokens take at the slowest pace that was measured, and `timeout_s` at least; before
anything was measured, five times `timeout_s`. A slow step on a busy machine does not come near that. One that goes on is
told to stop, which the runtime heeds between two operations. Where it does not, nobody waits for it any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import onnxruntime as ort
from fedlora.errors import FedloraError, GraphError
from fedlora.threads import leave_behind

from fedlora_serve.errors import BusyError
from fedlora_serve.limits import Limits

_TIMES_SLOWEST, _TIMES_UNMEASURED = 20, 5
_LONGEST_LOOK_S = 5.0  # between two looks at the clock
_LAST_WAIT_S = 5.0  # for a step that was told to stop
_CLOSING = "the server is shutting down; try another one, or again later"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One call of the runtime."""

    options: ort.RunOptions
    began: float
    allowed_s: float
    thread: threading.Thread


class StepWatch:
    """Watches the steps of one session. Any thread may begin one."""

    def __init__(
        self, timeout_s: float = Limits().step_timeout_s, when_lost: Callable[[str], None] | None = None
    ) -> None:
        """`when_lost` is called once, on another thread, with a sentence: a step did not even stop when it was told."""
        self._timeout_s, self._when_lost = timeout_s, when_lost
        self._slowest_s = 0.0  # per token, of the steps that ended
        self._steps: set[_Step] = set()
        self._overdue = ""  # what is told of a step that went on, until another one ends in time
        self._is_lost = self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def trouble(self) -> str:
        """A sentence on a step that does not end, or that had to be stopped; empty where all is well."""
        return self._overdue

    @property
    def is_lost(self) -> bool:
        """Whether a step did not even stop when it was told; no other one begins any more."""
        return self._is_lost

    def allowed_s(self, tokens: int) -> float:
        """How long a step that reads so many tokens may take."""
        if not self._slowest_s:
            return _TIMES_UNMEASURED * self._timeout_s
        return max(self._timeout_s, _TIMES_SLOWEST * tokens * self._slowest_s)

    @contextmanager
    def step(self, tokens: int) -> Iterator[ort.RunOptions]:
        """The options of a step that reads so many tokens. Raises BusyError where none may begin, and BusyError or
        GraphError where it was told to stop, whatever the runtime says of it."""
        step = self._begun(tokens)
        try:
            yield step.options
        except Exception:
            if self._ended(step):
                raise self._refusal() from None
            raise
        except BaseException:
            self._ended(step)
            raise
        if self._ended(step):
            raise self._refusal()
        taken = time.monotonic() - step.began
        with self._changed:
            self._slowest_s = max(self._slowest_s, taken / max(tokens, 1))
            self._overdue = ""

    def close(self, timeout_s: float) -> None:
        """Wait for the steps that run, tell those to stop that go on after `timeout_s`, and leave behind what does not."""
        with self._changed:
            if not self._is_lost:
                self._changed.wait_for(lambda: not self._steps, timeout_s)
            self._is_closed = True
            self._changed.notify_all()
            for step in self._steps:
                step.options.terminate = True
            if not self._is_lost:
                self._changed.wait_for(lambda: not self._steps, _LAST_WAIT_S)
            leave_behind([step.thread for step in self._steps])

    def _begun(self, tokens: int) -> _Step:
        with self._changed:
            if self._is_lost or self._is_closed:
                raise BusyError(self._overdue or _CLOSING)
            step = _Step(ort.RunOptions(), time.monotonic(), self.allowed_s(tokens), threading.current_thread())
            self._steps.add(step)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="step-watch", daemon=True)
                self._thread.start()
            return step

    def _ended(self, step: _Step) -> bool:
        """Whether it was told to stop."""
        with self._changed:
            self._steps.discard(step)
            self._changed.notify_all()
            return bool(step.options.terminate)

    def _refusal(self) -> FedloraError:
        """Of a step that was told to stop."""
        return GraphError(self._overdue) if self._overdue else BusyError(_CLOSING)

    def _watch(self) -> None:
        look_s = min(self._timeout_s / 4, _LONGEST_LOOK_S)
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, look_s):
                    return
                late = [step for step in self._steps if time.monotonic() > step.began + step.allowed_s]
                if not late:
                    continue
                for step in late:
                    step.options.terminate = True
                self._overdue = (
                    f"a step of the model had not ended after {late[0].allowed_s:.0f} s, and was stopped; restart the "
                    "service if this goes on"
                )
                _log.error("%s", self._overdue)
                self._changed.wait_for(partial(self._steps.isdisjoint, late), _LAST_WAIT_S)
                if self._is_closed or self._steps.isdisjoint(late):
                    continue
                self._is_lost = True
                self._overdue = (
                    f"a step of the model did not end within {late[0].allowed_s:.0f} s, and does not stop; restart the "
                    "service"
                )
                _log.error("%s", self._overdue)
            if self._when_lost is not None:
                self._when_lost(self._overdue)
            return
