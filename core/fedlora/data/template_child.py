"""The process in which chat templates of strangers run: it reads requests, and answers each of them or ends.

A rendering that takes too much processor time is ended by the system, whatever it is at: a timer whose signal nobody
handles. Memory has a limit of the system's too. It is run as a file, and imports Jinja and the sandbox alone: the rest of
fedlora would make it ten times as large.

    request     8 bytes of length, pickle of `Request`
    answer      8 bytes of length, JSON: {"text": ...}, {"refused": why}, or {"failed": why, "line": 0 where none is known};
                {"memory": true} where there was not enough, and then it ends
"""

from __future__ import annotations

import json
import pickle
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from jinja2 import Template

    from fedlora.data.template_sandbox import BoundedEnvironment

_MAX_REASON = 1000  # characters
_MAX_TEMPLATES = 16  # kept compiled
_LENGTH_BYTES = 8

# (source, its place, values, marks, today); values None: it is only compiled
Request = tuple[str, str, Mapping[str, Any] | None, tuple[str, str], date]


def send(file: BinaryIO, content: bytes) -> None:
    """Write a request or an answer."""
    file.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
    file.flush()


def receive(file: BinaryIO) -> bytes | None:
    """A request or an answer; None where the other end has closed."""
    head = file.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    content = file.read(length) if len(head) == _LENGTH_BYTES else b""
    return content if len(head) == _LENGTH_BYTES and len(content) == length else None


def answer_to(request: Request) -> dict[str, Any]:
    """What the template writes, or why it does not. Raises MemoryError."""
    from jinja2 import TemplateError, TemplateSyntaxError

    from fedlora.data.template_sandbox import RefusedError

    source, place, values, marks, today = request
    try:
        environment, template = _compiled(source, place)
    except TemplateSyntaxError as error:
        return {"failed": str(error.message), "line": error.lineno}
    except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
        return {"failed": str(error), "line": 0}
    if values is None:
        return {"text": ""}
    try:
        return {"text": environment.rendered(template, values, marks, today)}
    except RefusedError as error:
        return {"refused": str(error)[:_MAX_REASON]}
    except MemoryError:
        raise
    except Exception as error:  # a template can fail in any way that a program can
        lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == place]
        return {"failed": (str(error) or type(error).__name__)[:_MAX_REASON], "line": lines[-1] if lines else 0}


@lru_cache(maxsize=_MAX_TEMPLATES)
def _compiled(source: str, place: str) -> tuple[BoundedEnvironment, Template]:
    from fedlora.data.template_sandbox import BoundedEnvironment

    environment = BoundedEnvironment()
    return environment, environment.compiled(source, place)


def _without_the_rest() -> None:
    """`fedlora` and `fedlora.data` are bare folders here: their own modules are not run."""
    here = Path(__file__).resolve().parent
    for name, folder in (("fedlora", here.parent), ("fedlora.data", here)):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


def _limit_memory(more_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + more_bytes
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_timer(seconds: float) -> None:
    """The process ends after so much more processor time; 0: it does not."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _main(max_cpu_s: float, max_memory_bytes: int) -> None:
    _without_the_rest()
    import fedlora.data.template_sandbox  # noqa: F401  (before there is a limit)

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _limit_memory(max_memory_bytes)
    while (content := receive(requests)) is not None:
        _set_timer(max_cpu_s)
        try:
            # What its own parent wrote; what goes back is JSON.
            request = pickle.loads(content)  # nosec B301
            answer = json.dumps(answer_to(request)).encode()
        except MemoryError:
            answer = b""
        _set_timer(0)
        if not answer:  # what is left of it is nobody's business
            send(answers, json.dumps({"memory": True}).encode())
            return
        send(answers, answer)


if __name__ == "__main__":
    _main(float(sys.argv[1]), int(sys.argv[2]))
