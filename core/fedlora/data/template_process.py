"""Chat templates of strangers, rendered in a process of their own: whatever a template does, it ends, and ends alone.

What a program costs cannot be told from its steps: comparing two lists is one of them, and may take for ever in C, where
no other thread runs. So it runs where the system bounds processor time and memory. The process is begun at the first
template and waits for the next one, so that a rendering costs a message and its answer.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import Any, BinaryIO, cast

from fedlora.data import template_child
from fedlora.data.template_child import receive, send
from fedlora.data.template_sandbox import FIXED_DAY

MAX_CPU_S = 4.0  # of one rendering, or of compiling a template
MAX_MEMORY_BYTES = 512 << 20  # above what Jinja takes
_PATIENCE_S = 60.0  # of a machine that is busy or asleep; a rendering's own time is MAX_CPU_S
_GRACE_S = 1.0
_MAX_IDLE = 2


class TemplateFailedError(Exception):
    """A template fails, in its `line`, which is 0 where none is known."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


class TemplateCostsError(TemplateFailedError):
    """A template takes more time or memory than any may."""


class TemplateRefusedError(Exception):
    """A template itself refuses what it is given."""


def check_template(source: str, place: str) -> None:
    """Raises TemplateFailedError where it cannot be compiled."""
    _answered((source, place, None, ("", ""), FIXED_DAY))


def rendered(source: str, place: str, values: Mapping[str, Any], marks: tuple[str, str], today: date) -> str:
    """What the template writes, with `marks` around each {% generation %} block.

    Raises TemplateRefusedError, TemplateFailedError. It may be called from several threads.
    """
    return _answered((source, place, values, marks, today))


class _Child:
    """One process, which answers one request after another."""

    def __init__(self) -> None:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
        # Of a group of its own, where there are such: a Ctrl-C is for who began it.
        group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", template_child.__file__, str(MAX_CPU_S), str(MAX_MEMORY_BYTES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path}, **group,
            )  # fmt: skip
        except OSError as error:
            raise TemplateFailedError(f"no process could be begun for it: {error.strerror}") from None
        self._requests = cast(BinaryIO, self._process.stdin)
        self._answers = cast(BinaryIO, self._process.stdout)

    def answer(self, request: bytes) -> dict[str, Any]:
        """The answer to a request. Raises TemplateFailedError where it cost the process, which is of no more use then."""
        patience = threading.Timer(_PATIENCE_S, self._process.kill)
        if not hasattr(select, "poll"):
            patience.start()
        try:
            with suppress(BrokenPipeError):
                send(self._requests, request)
            content = receive(self._answers) if self._answers_in_time() else None
        finally:
            patience.cancel()
        if content is None:
            raise TemplateCostsError(_why_ended(self.end()))
        answer: dict[str, Any] = json.loads(content)
        return answer

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """End the process; how it ended."""
        with suppress(OSError):
            self._requests.close()
        if self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):  # it ends by itself as soon as it reads
                self._process.wait(_GRACE_S)
            self._process.kill()
        code = self._process.wait()
        self._answers.close()
        return code

    def abandon(self) -> None:
        """Forget a process that is another one's child."""
        self._process.returncode = 0
        self._requests.close()
        self._answers.close()

    def _answers_in_time(self) -> bool:
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        return bool(poll.poll(_PATIENCE_S * 1000))


def _why_ended(code: int) -> str:
    if code == -getattr(signal, "SIGPROF", 0):
        return f"it takes more than {MAX_CPU_S:g} s of processor time"
    return f"it ended the process that writes it ({code})"


_idle: deque[_Child] = deque()


def _answered(request: template_child.Request) -> str:
    try:
        content = pickle.dumps(request)
    except (RecursionError, TypeError, AttributeError, pickle.PicklingError) as error:
        raise TemplateFailedError(f"what it is given is no JSON, or too deep: {error}") from None
    child = _idle_child() or _Child()
    try:
        answer = child.answer(content)
    except BaseException:
        child.end()
        raise
    if "memory" in answer:
        child.end()
        raise TemplateCostsError(f"it takes more than {MAX_MEMORY_BYTES >> 20} MB of memory")
    _idle.append(child)
    if len(_idle) > _MAX_IDLE:
        _idle.popleft().end()
    match answer:
        case {"text": str(text)}:
            return text
        case {"refused": str(why)}:
            raise TemplateRefusedError(why)
    raise TemplateFailedError(str(answer.get("failed")), int(answer.get("line", 0)))


def _idle_child() -> _Child | None:
    """One that waits; some may have ended: where a machine is short of memory, it chooses what to end."""
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            return None
        if child.is_alive:
            return child
        child.end()


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


def _abandon_all() -> None:
    while _idle:
        _idle.pop().abandon()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
