"""The server of llama-cpp-python, asked over HTTP: one request at a time, one model or adapter at a time.

It has a lock around its one model, so that requests wait for each other; an adapter is chosen when a model is loaded, so
that each is a model of its own to it, loaded anew whenever the adapter of a request is not that of the one before.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from serve.engine import ROWS, ServeJob, adapters_of

_START_S, _ANSWER_S = 60, 600
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


class ServerBench:
    """A server in a process of its own. All seconds are the wall's."""

    def __init__(self, job: ServeJob) -> None:
        self._job = job
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        common = {
            "model": job.model, "n_ctx": job.capacity, "n_threads": job.threads, "n_threads_batch": job.threads,
            "verbose": False,
        }  # fmt: skip
        paths = ["", *sorted({path for paths in job.adapters.values() for path in paths})]
        models = [common | {"model_alias": path or "base", "lora_path": path or None} for path in paths]
        settings = {"host": "127.0.0.1", "port": self._port, "interrupt_requests": False, "models": models}
        self._folder = tempfile.TemporaryDirectory()
        config = Path(self._folder.name) / "config.json"
        config.write_text(json.dumps(settings))
        started = time.perf_counter()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", "--config_file", str(config)],
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)}, stdout=sys.stderr, stderr=sys.stderr,
        )  # fmt: skip
        atexit.register(self._server.terminate)
        self._wait()
        self.load_s = time.perf_counter() - started

    def answers(self, case: str, prompt: int, new: int, seed: int) -> dict[str, Any]:
        """Seconds, and tokens, of ROWS requests at once. The model is loaded before, where all have the same."""
        aliases = [path or "base" for path in adapters_of(self._job, case)]
        letters = np.random.default_rng([seed, 3]).choice(_LETTERS, (ROWS + 1, prompt - 1))  # the server adds a token
        texts = [bytes(row).decode() for row in letters]
        if len(set(aliases)) == 1:
            self._ask(aliases[0], texts[-1], 1)
        tokens = [0] * ROWS

        def ask(row: int) -> None:
            tokens[row] = self._ask(aliases[row], texts[row], new)

        threads = [threading.Thread(target=ask, args=(row,)) for row in range(ROWS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        if not all(tokens):
            raise RuntimeError("the server of llama-cpp-python did not answer a request")
        return {"seconds": seconds, "tokens": sum(tokens)}

    def stop(self) -> dict[str, Any]:
        """End the server, which a killed process would leave behind."""
        self._server.terminate()
        self._server.wait()
        self._folder.cleanup()
        return {}

    def _ask(self, alias: str, text: str, new: int) -> int:
        """How many tokens the answer has."""
        body = {"model": alias, "prompt": text, "max_tokens": new, "temperature": 0.0}
        answer = self._post("/v1/completions", body)
        count: int = answer["usage"]["completion_tokens"]
        return count

    def _post(self, path: str, body: dict[str, Any] | None) -> Any:
        """What the server answers; without a body it is a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"the server of llama-cpp-python answered {response.status} to {path}")
            return json.load(response)

    def _wait(self) -> None:
        """Until the server answers."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self._post("/v1/models", None)
            except (OSError, http.client.HTTPException):
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server of llama-cpp-python does not start; see its extras above") from None
                time.sleep(0.1)
            else:
                return
