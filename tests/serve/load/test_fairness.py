"""What others do costs an honest caller little: many answers, long prompts, streams, embeddings, connections."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedlora import open_pack
from fedlora.exported.profiles import Profile
from fedlora_export.export import export_base

from tests.serve.load.hog import ask
from tests.serve.serving_process import Serving, serving
from tests.tiny.encoders import save_encoder_pack

pytestmark = pytest.mark.slow

HONEST = "honest-key-0123456789"
KEYS = [f"hog-{number:02d}-key-0123456789" for number in range(10)]
SECONDS = 4.0
# Generous: clients and service share the cores of the machine with whatever else runs there. The figures are printed.
MOST_TIMES, MOST_S = 6.0, 0.5


@contextmanager
def service(folder: Path, tmp_path: Path, *options: str) -> Iterator[Serving]:
    keys = {"honest": HONEST} | {f"hog {number}": key for number, key in enumerate(KEYS)}
    config = tmp_path / "serve.toml"
    config.write_text("".join(f'[[keys]]\nname = "{name}"\nkey = "{key}"\n' for name, key in keys.items()))
    named = ("--config", str(config), "--served-model-name", "base", *options)
    with serving(folder, *named, temporary=tmp_path / "tmp") as process:
        yield process


def honest_s(url: str, path: str, body: dict[str, object], seconds: float) -> float:
    """The median time of an answer, one after another; all of them 200."""
    times, statuses, ends = list[float](), set[int](), time.monotonic() + seconds
    while time.monotonic() < ends or not times:
        began = time.perf_counter()
        statuses.add(ask(url, path, body, HONEST))
        times.append(time.perf_counter() - began)
        time.sleep(0.05)
    assert statuses == {200}
    return statistics.median(times)


@contextmanager
def hogs(url: str, kind: str, clients: int, keys: int) -> Iterator[None]:
    arguments = [url, kind, str(clients), str(SECONDS + 2), ",".join(KEYS[:keys]), "base"]
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.load.hog", *arguments], cwd=root, stdout=subprocess.PIPE
    )
    try:
        time.sleep(1.5)
        yield
    finally:
        process.kill()
        process.communicate()


def compared(url: str, path: str, body: dict[str, object], kinds: dict[str, list[tuple[int, int]]]) -> dict[str, float]:
    """How many times its time alone an honest answer takes, of those that took long."""
    slow: dict[str, float] = {}
    honest_s(url, path, body, 1)
    for kind, crowds in kinds.items():
        for clients, keys in crowds:
            alone = honest_s(url, path, body, 1)  # again each time: what else runs on the machine changes
            with hogs(url, kind, clients, keys):
                beside = honest_s(url, path, body, SECONDS)
            what = f"{clients} x {kind} of {keys} keys"
            print(f"{what}: {beside * 1e3:.0f} ms, alone {alone * 1e3:.0f} ms: {beside / alone:.1f} times")
            if beside > max(MOST_TIMES * alone, MOST_S):
                slow[what] = beside / alone
            time.sleep(1)
    return slow


def test_who_asks_for_everything_lets_an_honest_caller_have_its_answer(tmp_path: Path) -> None:
    export_base(open_pack("nano"), tmp_path / "nano", profiles=("kernel",))
    body: dict[str, object] = {"model": "base", "prompt": "def", "max_tokens": 4, "ignore_eos": True}
    crowds = [(1, 1), (3, 1), (10, 10)]
    with service(tmp_path / "nano", tmp_path) as process:
        kinds = dict.fromkeys(("answers", "streams", "prompts"), crowds)
        assert compared(process.url, "/v1/completions", body, kinds) == {}


def test_who_embeds_much_lets_an_honest_caller_have_a_vector(tmp_path: Path) -> None:
    export_base(save_encoder_pack("bare bert", tmp_path / "pack"), tmp_path / "encoder")
    body: dict[str, object] = {"model": "base", "input": "a few words"}
    with service(tmp_path / "encoder", tmp_path) as process:
        assert compared(process.url, "/v1/embeddings", body, {"embeddings": [(1, 1), (10, 10)]}) == {}


def test_connections_that_ask_nothing_keep_nobody_out(folders: dict[Profile, Path], tmp_path: Path) -> None:
    with service(folders["kernel"], tmp_path) as process:
        port, over, opened = int(process.url.rsplit(":", 1)[1]), threading.Event(), [0]

        def flood() -> None:
            held: list[socket.socket] = []
            while not over.wait(0.5):
                held = [each for each in held if _still_open(each)]
                while len(held) < 560 and not over.is_set():
                    try:
                        held.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                        held[-1].send(b"GET / HTTP/1.1\r\nA: ")
                        opened[0] += 1
                    except OSError:
                        break
            for each in held:
                each.close()

        flooding = threading.Thread(target=flood, daemon=True)
        flooding.start()
        time.sleep(2)
        statuses = []
        for _ in range(60):
            statuses.append(
                ask(process.url, "/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 1}, HONEST)
            )
            time.sleep(0.1)
        over.set()
        flooding.join(30)
        print(f"{opened[0]} connections of one client: {json.dumps({s: statuses.count(s) for s in set(statuses)})}")
        assert statuses == [200] * 60


def _still_open(each: socket.socket) -> bool:
    try:
        each.send(b"X")
    except OSError:
        each.close()
        return False
    return True
