"""`fedlora serve` as a process: from its first line to its last signal."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import FedloraError
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_export.export import export_base
from fedlora_serve.commands.serve import serve

from tests.serve.serving_process import ADMIN, COMMAND, Serving, serving
from tests.tiny.adapters import random_adapter


@pytest.fixture(scope="module")
def folder(base: BasePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with its graph `rows`, and adapters beside it."""
    folder = tmp_path_factory.mktemp("process")
    export_base(base, folder / "model", profiles=["rows"])
    for seed, name in enumerate(("tone", "later"), 1):
        content = PeftDirectory(adapter=random_adapter(base, seed=seed), base_fingerprint=base.fingerprint)
        write_peft(folder / "adapters" / name, content)
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Serving]]:
    """Starts processes, which end with the test at the latest."""
    with ExitStack() as stack:

        def start(*options: str, model: Path = folder / "model") -> Serving:
            return stack.enter_context(serving(model, *options, temporary=folder / "tmp"))

        yield start


def test_a_service_answers_for_the_base_and_its_adapters_and_ends_with_0(
    start: Callable[..., Serving], folder: Path
) -> None:
    adapters = folder / "adapters"
    service = start("--adapter", f"tone={adapters / 'tone'}", "--adapter-folder", str(adapters), "--rows", "4")
    assert re.match(
        r"model on http://127\.0\.0\.1:\d+ \(open, without keys\): 1 adapter in [\d.]+ KiB of 1 GiB, 4 rows, 1 GiB",
        service.line,
    )
    assert service.get("/health").json()["status"] == "ok"
    assert service.get("/v1/models", headers={"Host": "evil.example:80"}).status_code == 403
    loaded = service.post("/v1/load_lora_adapter", {"lora_name": "later", "lora_path": "later"}, headers=ADMIN)
    assert loaded.text == "Success: LoRA adapter 'later' added successfully."
    answers = {}
    for model in ("model", "tone", "later"):
        body = {"model": model, "prompt": "ab", "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 0}
        answer = service.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 8
        answers[model] = tuple(answer.json()["choices"][0]["logprobs"]["token_logprobs"])
    assert len(set(answers.values())) == 3
    listed = service.get("/v1/adapters").json()["data"]
    assert [(row["name"], row["source"], row["users"]) for row in listed] == [
        ("later", "later", 0),
        ("tone", "tone", 0),
    ]
    metrics = service.get("/metrics").text
    assert 'fedlora:request_success_total{finished_reason="length",model_name="tone"} 1.0' in metrics
    assert 'fedlora:generation_tokens_total{model_name="model"} 8.0' in metrics
    assert 'fedlora:num_requests_running{model_name="model"} 0.0' in metrics
    assert 'fedlora:http_requests_total{status="200"}' in metrics
    assert "fedlora" in service.get("/").text
    assert len([path for path in (folder / "tmp").glob("fedlora-*") if path.is_dir()]) == 1  # beside its lock
    assert service.stop() == (0, "")
    assert list((folder / "tmp").iterdir()) == []  # no private copies, and no session of ONNX Runtime's telemetry


def test_ctrl_c_ends_it_as_well_as_a_term_signal(start: Callable[..., Serving]) -> None:
    assert start().stop(signal.SIGINT) == (0, "")


def test_an_encoder_is_served_for_its_embeddings(start: Callable[..., Serving], encoder_model: Path) -> None:
    service = start(model=encoder_model)
    assert "rows" not in service.line
    answer = service.post("/v1/embeddings", {"model": encoder_model.name, "input": ["a", "b c"]})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    assert service.get("/health").json()["status"] == "ok"
    assert service.get("/page/service.json").json()["generates"] is False
    assert service.stop() == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL", "--host", "0.0.0.0"], "--allow-open"),
        (["MODEL", "--adapter", "tone"], "expected NAME=PATH"),
        (["MODEL", "--adapter", "tone=nowhere"], "nowhere: there is no such file or folder"),
        (["MODEL", "--adapter", "tone=a", "--adapter", "tone=b"], "tone is a already"),
        (["MODEL", "--adapter", "model=."], "is the base's name"),
        (["MODEL", "--adapter-folder", "nowhere"], "no folder that can be read"),
        (["MODEL", "--adapter-dtype", "float16"], "decoder.rows.onnx takes float32 alone"),
        (["MODEL", "--cache-memory", "1KiB"], "the cache of keys and values"),
        (["MODEL", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["PACK"], "--profile rows"),
        (["nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_what_is_wrong_at_the_start_is_told_with_what_to_do(
    base: BasePack, folder: Path, options: list[str], message: str
) -> None:
    places = {"MODEL": str(folder / "model"), "PACK": str(base.directory)}
    arguments = ["--port", "0", *(places.get(option, option) for option in options)]
    with pytest.raises(FedloraError, match=re.escape(message)):
        serve.main(arguments, standalone_mode=False)
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def test_a_start_that_fails_is_one_line_and_exit_status_1(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [str(folder / "model"), "--port", str(taken.getsockname()[1])]
        done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("error: cannot listen on 127.0.0.1")
