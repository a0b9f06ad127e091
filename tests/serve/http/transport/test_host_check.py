"""The host that a service for this machine alone is asked for by."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fedlora_serve.http.transport.host_check import HostCheck
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:8000", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200),
        ("[::1]", 200), ("page.localhost", 200), ("evil.example", 403), ("127.0.0.1.evil.example:8000", 403),
        ("localhost.evil.example", 403), ("192.168.1.2", 403), ("", 403),
    ],
)  # fmt: skip
def test_a_service_for_this_machine_is_not_there_under_another_name(host: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response()(scope, receive, send)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(HostCheck(app)), base_url="http://here") as client:
            return (await client.get("/", headers={"Host": host})).status_code

    assert asyncio.run(ask()) == status
