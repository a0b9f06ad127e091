"""Processes whose model does not end a step: they say so, and they end when they are told."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from fedlora_export.export import export_base

from tests.serve.changed_graphs import change_graph, endless
from tests.serve.serving_process import MAIN, serving
from tests.serve.unchecked import DEAF, UNCHECKED
from tests.tiny.encoders import BARE, encoder_pack
from tests.tiny.families import FAMILIES, family_pack

TEXT = ("/v1/completions", {"prompt": "a", "max_tokens": 1})
VECTOR = ("/v1/embeddings", {"input": "a"})


@pytest.fixture(scope="module")
def endless_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder and an encoder whose graphs do not end, for reading."""
    folders = {"decoder": tmp_path_factory.mktemp("a") / "model", "encoder": tmp_path_factory.mktemp("b") / "model"}
    export_base(family_pack(next(iter(FAMILIES))), folders["decoder"], profiles=("compat", "rows"))
    export_base(encoder_pack(next(iter(BARE))), folders["encoder"])
    for folder in folders.values():
        for graph in folder.glob("*.onnx"):
            change_graph(graph, endless)
    return folders


def config(folder: Path, step_timeout_s: float) -> list[str]:
    """The options of a service that waits no longer for a step."""
    (folder / "serve.toml").write_text(f"[limits]\nstep_timeout_s = {step_timeout_s}\nshutdown_timeout_s = 0.5\n")
    return ["--config", str(folder / "serve.toml")]


def in_background(url: str, body: object) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=60)), daemon=True)
    thread.start()
    return thread, answers


def health_when(serving_url: str, status: int) -> dict[str, str]:
    """What /health says once it has this status."""
    for _ in range(600):
        answer = httpx.get(f"{serving_url}/health", timeout=30)
        if answer.status_code == status:
            told: dict[str, str] = answer.json()
            return told
        time.sleep(0.05)
    raise AssertionError(f"never {status}: {answer.text}")


def test_a_service_whose_step_does_not_end_says_so_and_goes_on(
    endless_folders: dict[str, Path], tmp_path: Path
) -> None:
    path, body = TEXT
    options = config(tmp_path, 0.2)
    with serving(endless_folders["decoder"], *options, temporary=tmp_path / "tmp", before=UNCHECKED) as process:
        for _ in range(2):  # it answers the next one too
            answer = process.post(path, {"model": "model", **body})
            assert answer.status_code == 500
            assert "a step of the model had not ended after 1 s, and was stopped" in answer.json()["error"]["message"]
        told = health_when(process.url, 503)
        assert told["status"] == "unavailable"
        assert "a step of the model had not ended" in told["message"]
        assert process.stop()[0] == 0


@pytest.mark.parametrize(
    ("kind", "asked"), [pytest.param("decoder", TEXT, marks=pytest.mark.slow), ("encoder", VECTOR)]
)
def test_a_service_whose_step_does_not_stop_turns_everybody_away_and_ends_when_told(
    endless_folders: dict[str, Path], tmp_path: Path, kind: str, asked: tuple[str, dict[str, object]]
) -> None:
    path, body = asked
    options = config(tmp_path, 0.2)
    with serving(endless_folders[kind], *options, temporary=tmp_path / "tmp", before=DEAF) as process:
        waiting = [in_background(f"{process.url}{path}", {"model": "model", **body}) for _ in range(3)]
        for thread, answers in waiting:
            thread.join(60)
            assert answers[0].status_code in (500, 503)
            assert "does not stop; restart the service" in answers[0].json()["error"]["message"]
        assert "does not stop; restart the service" in health_when(process.url, 503)["message"]
        late = process.post(path, {"model": "model", **body})
        assert late.status_code == 503
        assert "does not stop; restart the service" in late.json()["error"]["message"]
        code, errors = process.stop()
        assert code == 0
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("kind", "asked"), [("decoder", TEXT), pytest.param("encoder", VECTOR, marks=pytest.mark.slow)]
)
def test_a_service_in_a_step_that_does_not_end_ends_when_told(
    endless_folders: dict[str, Path], tmp_path: Path, kind: str, asked: tuple[str, dict[str, object]]
) -> None:
    path, body = asked
    options = config(tmp_path, 600)
    with serving(endless_folders[kind], *options, temporary=tmp_path / "tmp", before=UNCHECKED) as process:
        thread, answers = in_background(f"{process.url}{path}", {"model": "model", **body})
        time.sleep(1)
        assert process.get("/health").status_code == 200  # slow, for all that it knows
        code, errors = process.stop()
        assert code == 0
        assert "Traceback" not in errors
        thread.join(60)
        assert answers[0].status_code in (500, 503)
        assert "shutting down" in answers[0].json()["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_generate_ends_when_told(endless_folders: dict[str, Path], tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    before = f"{UNCHECKED}\nimport atexit, fedlora_serve.local.engine as engine\nbefore = engine.Decoding.step\n" + (
        "def step(self, tokens):\n"
        f"    open({str(ready)!r}, 'w').close()\n"
        "    return before(self, tokens)\n"
        "engine.Decoding.step = step\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{MAIN}", "generate", str(endless_folders["decoder"]), "--prompt", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(1200):
            if ready.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(0.2)  # it is within the runtime
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == -number
        assert (output, errors) == ("", "")
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(tmp_path, ignore_errors=True)
