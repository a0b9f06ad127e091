"""The client's end of a connection: whether it is still there, and whether it still reads.

A client that stops reading fills the buffers between it and us, and then a send waits. No send waits longer than
`send_timeout_s`: then the connection is cut, with what is left in its buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_T = TypeVar("_T")
_KNOWN_WITHIN_S = 1.0


class ClientGoneError(OSError):
    """There is nobody to answer."""


class ClientLeftError(ClientGoneError):
    """The client has closed its connection."""


class ClientStalledError(ClientGoneError):
    """The client does not read, and its connection was cut."""


class SendLimit:
    """An application whose clients read. It stands around all others: only the server's own `send` knows the connection."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app, self._timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with suppress(ClientStalledError):
            await self._app(scope, receive, _bounded(send, receive, self._timeout_s))


def _bounded(send: Send, receive: Receive, timeout_s: float) -> Send:
    """`send`, which raises ClientStalledError after `timeout_s`, and then has cut the connection.

    A body that is sent at once is followed by an empty end, so that it too has been taken when the answer is complete.
    """

    async def sent(message: Message) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await send(message)
        except TimeoutError:
            await _hang_up(send, receive)
            raise ClientStalledError(f"the client read nothing for {timeout_s:g} s") from None

    async def bounded(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("body") and not message.get("more_body", False):
            await sent({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await sent(message)

    return bounded


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns. It is cancelled, and ClientLeftError raised, as soon as the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError("the client has left")
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
    return working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _hang_up(send: Send, receive: Receive) -> None:
    """Cut the connection, and wait until the server knows: it takes an application that returns before for broken.

    ASGI has no word for it; in uvicorn `send` belongs to an object that has the transport, of asyncio or of uvloop.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(_KNOWN_WITHIN_S):
                await _disconnected(receive)
