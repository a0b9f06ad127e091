"""Pages of other origins, as a browser asks for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora_serve.http.access.keys import ApiKey, key_digest
from fedlora_serve.http.api.server import guarded_app
from fedlora_serve.http.service.config import ServeConfig

from tests.serve.http.fake_engine import FakeEngine, words
from tests.serve.http.services import BASE, service

KEY = "web-key-0123456789"
PAGE = "http://localhost:3000"
CHAT = "/v1/chat/completions"
BODY = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}]}


class Browser:
    """What a browser sends for a page, and what it lets the page read."""

    def __init__(self, base: BasePack, origins: Sequence[str], **options: Any) -> None:
        state = service(base, FakeEngine(words("one two")), keys=[ApiKey(name="web", digest=key_digest(KEY))])
        self._app = guarded_app(state, allow_origin=origins, **options)

    def ask(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(method, path, headers=headers, json=body)

        return asyncio.run(asked())

    def preflight(self, origin: str, **more: str) -> httpx.Response:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-a",
        }
        return self.ask("OPTIONS", CHAT, {"Origin": origin, **asked, **more})


def test_a_page_of_an_allowed_origin_may_ask_with_a_key_and_read_the_answer(base: BasePack) -> None:
    browser = Browser(base, [PAGE, "https://chat.example"])
    asked = browser.preflight(PAGE, **{"Access-Control-Request-Private-Network": "true"})
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    assert asked.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-a"
    assert asked.headers["Access-Control-Allow-Private-Network"] == "true"
    assert "Access-Control-Allow-Credentials" not in asked.headers
    key = {"Origin": PAGE, "Authorization": f"Bearer {KEY}"}
    for body in (BODY, BODY | {"stream": True}):
        answer = browser.ask("POST", CHAT, key, body)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Origin" in answer.headers["Vary"]
        assert "X-Adapter-Digest" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.text.endswith("data: [DONE]\n\n")
    for refused in (
        browser.ask("POST", CHAT, {"Origin": PAGE}, BODY),
        browser.ask("POST", CHAT, key, {"model": BASE}),
        browser.ask("GET", "/nothing", key),
    ):
        assert refused.status_code in (400, 401, 404)
        assert refused.headers["Access-Control-Allow-Origin"] == PAGE  # so that the page sees what is wrong
        assert json.loads(refused.text)["error"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3001", "https://localhost:3000", "http://localhost:3000.evil.example", "null"]
)
def test_a_page_of_another_origin_gets_nothing_to_read(base: BasePack, origin: str) -> None:
    for origins in ([PAGE], []):
        browser = Browser(base, origins)
        asked = browser.preflight(origin)
        assert asked.status_code in (400, 405)
        assert "Access-Control-Allow-Origin" not in asked.headers
        answer = browser.ask("GET", "/health", {"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_all_origins_are_allowed_by_a_star_alone(base: BasePack) -> None:
    browser = Browser(base, ["*"])
    assert browser.preflight("https://any.example").headers["Access-Control-Allow-Origin"] == "*"
    answer = browser.ask("GET", "/health", {"Origin": "https://any.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_an_allowed_origin_does_not_get_around_the_check_of_the_host(base: BasePack) -> None:
    browser = Browser(base, ["*"], for_this_machine=True)
    refused = browser.ask("GET", "/v1/models", {"Origin": PAGE, "Host": "evil.example"})
    assert refused.status_code == 403
    assert "Access-Control-Allow-Origin" not in refused.headers


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://chat.example", "http://127.0.0.1:3000", "http://[::1]:5173", "chrome-extension://abcdef"],
)
def test_an_origin_is_taken_as_a_browser_sends_it(origin: str) -> None:
    assert ServeConfig(allow_origin=(origin,)).allow_origin == (origin,)


@pytest.mark.parametrize(
    ("origin", "written"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://Chat.Example", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://chat.example:80/", "http://chat.example"),
    ],
)
def test_what_a_browser_writes_otherwise_is_told(origin: str, written: str) -> None:
    with pytest.raises(ConfigError, match=f"as {written}; write it so"):
        ServeConfig(allow_origin=(origin,))


@pytest.mark.parametrize(
    "origin",
    ["", "localhost", "localhost:3000", "chat.example", "https://", "https://a/b", "https://a?b", "https://u@a",
     "https://*.a b", "http://a:port", "http://[::1", "https://é.example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="expected the origin of a page"):
        ServeConfig(allow_origin=(origin,))
