"""Many clients at a time, well-behaved and not, each answer checked against what its very version of the adapter says."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Texts = Mapping[tuple[str, int], str]  # {(digest that answered, number of the prompt): text}
DIGEST = "x-adapter-digest"
MALFORMED: Sequence[bytes] = (
    b"",
    b"{",
    b"\xff\xfe{}",
    b"[" * 5000,
    b'{"model": 1e999, "prompt": NaN}',
    b'{"model": "base", "prompt": "\\ud800", "max_tokens": 4}',
    b'{"model": "base", "prompt": [1e300], "max_tokens": 4}',
    b'{"model": "base", "prompt": "a", "max_tokens": -4}',
    b'{"model": "base", "prompt": "a", "n": 1000000}',
    b'{"model": "base", "prompt": "a", "temperature": "hot"}',
)


@dataclass(slots=True)
class Crowd:
    """What a crowd of clients asks, and what it saw."""

    url: str
    names: Sequence[str]  # of models that are there all the time
    prompts: Sequence[Sequence[int]]
    texts: Texts
    tokens: int  # of each answer
    statuses: Counter[int] = field(default_factory=Counter)
    complete: int = 0  # answers that were compared
    wrong: list[str] = field(default_factory=list)

    async def run(self, clients: int, seconds: float, admin: Callable[[httpx.AsyncClient], Any] | None = None) -> None:
        """`clients` at a time, each one request after another, for so long; `admin` changes adapters meanwhile."""
        deadline = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client,
            asyncio.TaskGroup() as all_,
        ):
            for number in range(clients):
                all_.create_task(self._client(client, random.Random(number), deadline))
            if admin is not None:
                all_.create_task(_repeat(admin, client, deadline))

    async def _client(self, client: httpx.AsyncClient, chance: random.Random, deadline: float) -> None:
        kinds = [self._whole, self._stream, self._leaves, self._reads_slowly, self._sends_nonsense, self._mistypes]
        while time.monotonic() < deadline:
            (kind,) = chance.choices(kinds, [50, 25, 10, 3, 6, 6])
            await kind(client, chance)

    async def _whole(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        number = chance.randrange(len(self.prompts))
        response = await client.post("/v1/completions", json=self._body(chance, number))
        self._count(response)
        if response.status_code == 200:
            self._compare(response, number, response.json()["choices"][0]["text"])

    async def _stream(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        number, text, ended = chance.randrange(len(self.prompts)), "", False
        async with client.stream(
            "POST", "/v1/completions", json=self._body(chance, number) | {"stream": True}
        ) as response:
            self._count(response)
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        self.wrong.append(str(chunk))
                        return
                    text += chunk["choices"][0]["text"]
        if response.status_code == 200:
            if not ended:
                self.wrong.append("a stream without its end")
            self._compare(response, number, text)

    async def _leaves(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        body = self._body(chance, chance.randrange(len(self.prompts))) | {"stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            self._count(response)
            async for _ in response.aiter_bytes():
                return  # after the first piece, and the connection closes

    async def _reads_slowly(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        body = self._body(chance, chance.randrange(len(self.prompts))) | {"stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            self._count(response)
            await asyncio.sleep(chance.random() * 2)  # and reads nothing more

    async def _sends_nonsense(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        headers = {"content-type": "application/json"}
        response = await client.post("/v1/completions", content=chance.choice(MALFORMED), headers=headers)
        self._count(response)
        if response.status_code == 200:
            self.wrong.append(f"nonsense was taken: {response.text}")

    async def _mistypes(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        response = await client.post("/v1/completions", json=self._body(chance, 0) | {"model": "no-such-adapter"})
        self._count(response)

    def _body(self, chance: random.Random, number: int) -> dict[str, Any]:
        return {
            "model": chance.choice(self.names),
            "prompt": list(self.prompts[number]),
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def _count(self, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code >= 500 and not (response.status_code == 503 and "retry-after" in response.headers):
            self.wrong.append(f"{response.status_code}: {response.headers}")

    def _compare(self, response: httpx.Response, number: int, text: str) -> None:
        self.complete += 1
        expected = self.texts[response.headers[DIGEST], number]
        if text != expected:
            self.wrong.append(f"{response.headers[DIGEST]} said {text!r} after prompt {number}, not {expected!r}")


async def _repeat(admin: Callable[[httpx.AsyncClient], Any], client: httpx.AsyncClient, deadline: float) -> None:
    while time.monotonic() < deadline:
        await admin(client)
