"""How long a service lets others wait: gaps of a heart that beats on its event loop, and of one beside it."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedlora_serve.http.api.server import bind, make_server
from fedlora_serve.http.service.state import ServiceState

_BEAT_S = 0.001


@dataclass(slots=True)
class Beats:
    """The longest gaps since they were last looked at, in seconds."""

    loop_s: float = 0.0
    lock_s: float = 0.0

    def taken(self) -> Beats:
        """What they are; they begin anew."""
        taken, self.loop_s, self.lock_s = Beats(self.loop_s, self.lock_s), 0.0, 0.0
        return taken


@contextmanager
def beating(state: ServiceState) -> Iterator[tuple[tuple[str, int], Beats]]:
    """The address of a server in a thread of this process, and its beats."""
    beats, ready, over = Beats(), threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None]] = []

    async def on_the_loop() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(_BEAT_S)
            last, before = time.perf_counter(), last
            beats.loop_s = max(beats.loop_s, last - before - _BEAT_S)

    def beside_it() -> None:
        last = time.perf_counter()
        while not over.wait(_BEAT_S):
            last, before = time.perf_counter(), last
            beats.lock_s = max(beats.lock_s, last - before - _BEAT_S)

    def begin() -> None:
        tasks.append(asyncio.get_running_loop().create_task(on_the_loop()))
        ready.set()

    bound = bind("127.0.0.1", 0)
    server = make_server(state, when_ready=begin)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    probing = threading.Thread(target=beside_it, daemon=True)
    serving.start()
    assert ready.wait(30)
    probing.start()
    try:
        yield bound.getsockname(), beats
    finally:
        over.set()
        server.should_exit = True
        serving.join(30)
        assert not serving.is_alive()


def sent(address: tuple[str, int], method: str, path: str, body: bytes | None, key: str) -> int:
    """The status of the answer to a body as it is."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


_SIZE = (2 << 20) - 300  # bytes: a little less than what a body may have


def _filled(before: str, one: str, after: str, count: int = 1 << 30) -> bytes:
    """`one` as often as there is room, with commas between."""
    count = min(count, (_SIZE - len(before) - len(after)) // (len(one.encode()) + 1))
    return (before + ",".join([one] * count) + after).encode()


def worst_bodies(model: str) -> dict[str, tuple[str, bytes]]:
    """{what it is: (route, body)}: large ones of each kind of value, in each place where a route looks for it."""
    text, chat, embed = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
    named = f'{{"model":"{model}",'
    message = '{"role":"user","content":"a"}'
    names = ",".join(f'"{number:x}":null' for number in range(65_000))
    tokens = ",".join(f'"{number}":1' for number in range(60_000))
    bodies: dict[str, tuple[str, bytes]] = {
        "token ids": (text, _filled(f'{named}"max_tokens":1,"prompt":[', "1", "]}")),
        "numbers with a point": (text, _filled(f'{named}"max_tokens":1,"prompt":[', "1.0", "]}")),
        "lists of token ids": (text, _filled(f'{named}"max_tokens":1,"prompt":[', "[" + "1," * 4000 + "1]", "]}")),
        "texts": (text, _filled(f'{named}"prompt":[', '"a"', "]}", 130_000)),
        "64 texts": (text, _filled(f'{named}"max_tokens":1,"prompt":[', '"' + "def " * 8000 + '"', "]}", 64)),
        "lists": (text, _filled(f'{named}"prompt":[', "[]", "]}", 65_000)),
        "escapes": (text, _filled(f'{named}"prompt":["', r"\n\"[", '"]}')),
        "a text": (text, _filled(f'{named}"prompt":"', "def main():", '"}')),
        "a text of one letter": (text, (f'{named}"prompt":"' + "a" * (_SIZE - 100) + '"}').encode()),
        "emoji": (text, _filled(f'{named}"prompt":"', "\U0001f600", '"}')),
        "stops": (text, _filled(f'{named}"prompt":"a","stop":[', '"b"', "]}", 130_000)),
        "stop tokens": (text, _filled(f'{named}"prompt":"a","stop_token_ids":[', "1", "]}")),
        "biases": (text, f'{named}"prompt":"a","logit_bias":{{{tokens}}}}}'.encode()),
        "unknown names": (text, f'{named}"prompt":"a",{names}}}'.encode()),
        "metadata": (text, f'{named}"prompt":"a","max_tokens":1,"metadata":{{{names}}}}}'.encode()),
        "no JSON": (text, b"[1," * 600_000),
        "messages": (chat, _filled(f'{named}"max_tokens":1,"messages":[', message, "]}", 16_000)),
        "too many messages": (chat, _filled(f'{named}"messages":[', "{}", "]}", 60_000)),
        "a long message": (
            chat,
            f'{named}"max_tokens":1,"messages":[{{"role":"user","content":"{"word " * 400_000}"}}]}}'.encode(),
        ),
        "parts": (
            chat,
            _filled(
                f'{named}"max_tokens":1,"messages":[{{"role":"user","content":[',
                '{"type":"text","text":"a"}',
                "]}]}",
                30_000,
            ),
        ),
        "tools": (
            chat,
            _filled(f'{named}"tool_choice":"none","messages":[{message}],"tools":[', '{"a":[]}', "]}", 32_000),
        ),
        "texts to embed": (embed, _filled(f'{named}"input":[', '"a"', "]}", 130_000)),
        "64 texts to embed": (embed, _filled(f'{named}"input":[', '"' + "word " * 100 + '"', "]}", 64)),
        "logprobs": (
            text,
            json.dumps(
                {
                    "model": model,
                    "prompt": ["a"] * 8,
                    "n": 16,
                    "max_tokens": 90,
                    "logprobs": 20,
                    "ignore_eos": True,
                }
            ).encode(),
        ),
        "logprobs of a chat": (
            chat,
            json.dumps(
                {
                    "model": model,
                    "messages": [{"role": "user", "content": "a"}],
                    "n": 16,
                    "max_tokens": 100,
                    "logprobs": True,
                    "top_logprobs": 20,
                    "ignore_eos": True,
                }
            ).encode(),
        ),
    }
    return bodies
