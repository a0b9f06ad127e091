"""A worker process that a benchmark asks for measurements, and commands of which it wants time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

_FOLDER = Path(__file__).resolve().parent


class WorkerError(Exception):
    """An engine could not be loaded or measured; the message is the last line that it said."""


class Job(Protocol):
    """What a process loads, as text for its command line."""

    @property
    def threads(self) -> int: ...

    def text(self) -> str: ...


class Worker:
    """One engine in a process of its own; it sleeps while others are measured."""

    def __init__(self, job: Job, python: str, script: str = "export_worker.py") -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [python, str(_FOLDER / script), job.text()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip

    def loaded(self) -> dict[str, Any]:
        """What loading took; wait for it, once. Raises WorkerError."""
        return self._answer()

    def ask(self, what: str, **arguments: int | float | str) -> dict[str, Any]:
        """What the worker's method `what` returns. Raises WorkerError."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return (lines or [f"exit code {code}"])[-1][:200]


def measured_command(command: Sequence[str]) -> dict[str, float]:
    """{seconds, peak_mb} of a command. Raises WorkerError where it fails."""
    with tempfile.TemporaryDirectory() as here:  # Olive keeps a cache where it stands, and finds other weights in it
        done = subprocess.run(
            [sys.executable, str(_FOLDER / "export_peak.py"), *command],
            env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, cwd=here,
        )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result.pop("exit_code"):
        raise WorkerError((done.stderr.strip().splitlines() or ["failed"])[-1][:200])
    return result


def peer_versions(python: str | None) -> dict[str, str]:
    """{package: version} of the peers' environment; nothing where there is none."""
    if not python:
        return {}
    script = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    names = ("onnxruntime", "onnxruntime-genai", "olive-ai", "llama_cpp_python", "torch", "transformers")
    return {name: found[name] for name in names if name in found}
