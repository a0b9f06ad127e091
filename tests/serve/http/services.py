"""Services to test: a tiny base, an engine without a model, adapters without values."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.request import TextEngine
from fedlora_serve.http.access.keys import ApiKey, Keys
from fedlora_serve.http.api.app import create_app
from fedlora_serve.http.service.metrics import Metrics
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.http.transport.client_connection import SendLimit
from fedlora_serve.limits import Limits
from fedlora_serve.step_watch import StepWatch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.tiny.tokenizer import byte_tokenizer

BASE = "tiny"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'secret' %}{{ raise_exception('no secrets') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def service(
    base: BasePack,
    engine: TextEngine | None,
    *,
    adapters: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    keys: Sequence[ApiKey] = (),
    template: bool = True,
    embedder: Any = None,
) -> ServiceState:
    """A service of a tiny base, with adapters that have a digest and no values."""
    store = AdapterStore(base, budget_bytes=1 << 20, read=fake_adapter)
    for name in adapters:
        store.load(name, Path("somewhere") / name)
    return ServiceState(
        base=base,
        base_name=BASE,
        tokenizer=Tokenizer.from_file(str(base.directory / "tokenizer.json")),
        store=store,
        limits=Limits(**(limits or {})),
        keys=Keys(keys),
        metrics=Metrics(BASE),
        engine=engine,
        embedder=embedder,
        template=ChatTemplate(TEMPLATE, "the template", {}) if template else None,
    )


def fake_adapter(path: Path, base: BasePack, **bounds: Any) -> LoadedAdapter:
    """What stands for the adapter of a path: its digest is the path's."""
    digest = hashlib.sha256(path.name.encode()).hexdigest()
    return LoadedAdapter(name=path.name, source=path, digest=digest, values={}, rank=1, size_bytes=100)


class FakeEmbedder:
    """The embedding of a text is its length and its first token, the other way round for an adapter."""

    hidden_size, max_tokens = 2, 32

    is_alive, trouble = True, ""

    def __init__(self) -> None:
        self.normalized, self.watch = True, StepWatch()

    def tokens(self, text: str) -> list[int]:
        return list(text.encode())

    def embed(self, rows: Sequence[Sequence[int]], adapter: LoadedAdapter | None = None) -> NDArray[np.float32]:
        vectors = np.array([[len(row), row[0]] for row in rows], np.float32)
        return vectors[:, ::-1] if adapter else vectors


def unit(*numbers: float) -> Any:
    """What the service tells of a vector: it has length 1."""
    return pytest.approx([number / math.hypot(*numbers) for number in numbers], rel=1e-6)


class Client:
    """Asks an application without a socket, one request at a time."""

    def __init__(self, state: ServiceState, **headers: str) -> None:
        self._app, self._headers = create_app(state), headers

    def post(self, path: str, body: Any) -> httpx.Response:
        """Send JSON, in ASCII: half a surrogate pair can be written that way."""
        headers = {"content-type": "application/json"}
        return self.request("POST", path, content=json.dumps(body), headers=headers)

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=self._headers) as client:
                return await client.request(method, path, **content)

        return asyncio.run(asked())


@contextmanager
def running(state: ServiceState) -> Iterator[str]:
    """The address of a real server on this machine."""
    app = SendLimit(create_app(state), state.limits.send_timeout_s)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_config=None, http="h11", ws="none")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def events(body: str) -> list[Any]:
    """What a stream of events holds: JSON, and [DONE] as it is."""
    assert body.endswith("\n\n")
    datas = [event.removeprefix("data: ") for event in body.removesuffix("\n\n").split("\n\n")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def tokens(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text, add_special_tokens=False).ids)


def refusal(response: Any, status: int = 400) -> dict[str, Any]:
    """The error of a response that has this status."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
