"""`fedlora serve` as a process of its own, asked over HTTP and ended by a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ADMIN_KEY = "admin-key-0123456789"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
MAIN = "from fedlora.cli import main; main()"
COMMAND = [sys.executable, "-c", MAIN, "serve"]


class Serving:
    """A process that serves, and its first line."""

    def __init__(self, process: subprocess.Popen[str], line: str) -> None:
        self.process, self.line = process, line
        found = re.search(r"http://\S+:\d+", line)
        assert found, line
        self.url = found[0]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=30, **options)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The exit status that follows a signal, and what the process wrote to its standard error."""
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=60)[1]
        return self.process.returncode, errors


@contextmanager
def serving(model: Path, *options: str, temporary: Path, before: str = "") -> Iterator[Serving]:
    """A process on one thread and a free port, with ADMIN_KEY, once it answers; killed at the end if it still runs.

    It keeps its temporary files in the folder `temporary`; `before` is code that it runs first.
    """
    temporary.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{MAIN}", "serve", str(model), "--port", "0", "--threads", "1", *options],
        env={**os.environ, "FEDLORA_ADMIN_KEY": ADMIN_KEY, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield Serving(process, line)
    finally:
        process.kill()
        process.communicate()
