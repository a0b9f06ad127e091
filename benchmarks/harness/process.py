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

_BENCHMARKS = Path(__file__).resolve().parents[1]


def module_command(python: str, module: str, *arguments: object) -> list[str]:
    """The command that runs a module of a benchmark in an interpreter, a peer's too; it wants `module_environment`."""
    return [python, "-m", module, *map(str, arguments)]


def module_environment() -> dict[str, str]:
    """This process's environment, in which the rooms of the benchmarks can be imported."""
    paths = (str(_BENCHMARKS), os.environ.get("PYTHONPATH"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class WorkerError(Exception):
    """An engine could not be loaded or measured; the message is the last line that it said."""


class Job(Protocol):
    """What a process loads, as text for its command line."""

    @property
    def threads(self) -> int: ...

    def text(self) -> str: ...


class Worker:
    """One engine in a process of its own; it sleeps while others are measured."""

    def __init__(self, job: Job, python: str, module: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = module_environment() | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            module_command(python, module, job.text()),
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
            [sys.executable, str(Path(__file__).with_name("peak.py")), *command],
            env=module_environment() | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, cwd=here,
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
