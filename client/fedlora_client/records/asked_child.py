"""A process of its own that reads what may be anybody's, asked by one JSON object; it ends with whoever asked."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from fedlora.errors import DataError
from fedlora.files.limited import limited

_START_S = 20.0  # for a busy machine to begin it, beside its own seconds


@contextmanager
def asked_child(
    file: str, request: Mapping[str, Any], *, what: str, seconds: float, memory_bytes: int
) -> Iterator[BinaryIO]:
    """What the process that runs `file` writes; it is ended with the block, or when its time is over.

    It has so many seconds, of processor time too, and bytes of addresses. `what` it is begun to do stands in a DataError
    where no process can be begun.
    """
    command = [sys.executable, "-I", *limited(file, cpu_s=math.ceil(seconds) + 1, memory_bytes=memory_bytes)]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise DataError(f"no process could be begun to {what}: {error.strerror}; end others") from None
    over = threading.Timer(seconds + _START_S, process.kill)
    over.daemon = True
    over.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdout:
            try:
                process.stdin.write(json.dumps(request).encode())
                process.stdin.close()
            except BrokenPipeError:  # it has ended: what it wrote tells nothing
                pass
            yield process.stdout  # type: ignore[misc]
    finally:
        over.cancel()
        process.kill()
        process.wait()
