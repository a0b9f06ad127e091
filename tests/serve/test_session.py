"""While a session is built: nobody is left without a word, and Ctrl-C ends it."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fedlora_serve import session
from fedlora_serve.commands.interrupt import ends_at_once
from fedlora_serve.local.engine import Engine

from tests.serve.serving_process import MAIN


def test_a_session_that_takes_long_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told, made = threading.Event(), session._session

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    def slow(*arguments: object) -> object:
        assert told.wait(30)
        return made(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "_WORD_S", 0.01)
    monkeypatch.setattr(session, "_session", slow)
    handler = Told()
    session._log.addHandler(handler)
    try:
        Engine(model, threads=1)
    finally:
        session._log.removeHandler(handler)
    assert "decoder.onnx: ONNX Runtime has been loading it for 0 s" in caplog.text


def test_ctrl_c_means_what_it_meant_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ends_at_once():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(target=lambda: ends_at_once().__enter__())  # no thread but the first may set it
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_that_still_loads_ends_when_told(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    before = (
        "import time, fedlora_serve.http.service.open_service as opening\n"
        f"opening.open_service = lambda *_: (open({str(ready)!r}, 'w').close(), time.sleep(60))\n"
    )
    command = [sys.executable, "-c", f"{before}{MAIN}", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1200):
            if ready.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == -number
    finally:
        process.kill()
        process.communicate()
