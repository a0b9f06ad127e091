"""A request's body, within its bounds of size and time.

The bytes are counted as they come: a Content-Length may be missing or wrong. Nothing is read before the application asks
for it, so who asks is known before a body is.
"""

from __future__ import annotations

import asyncio

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedlora_serve.http.protocol.errors import ApiError, ErrorResponse
from fedlora_serve.limits import Limits

_CLOSE = {"Connection": "close"}  # the rest of the body is not read


class BodyLimit:
    """An application that gets no body above the bounds: reading it raises HTTPException 413 or 408."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
                await ErrorResponse(_two_lengths())(scope, receive, send)
                return
            receive = _bounded(receive, _content_length(scope), self._limits)
        await self._app(scope, receive, send)


def _bounded(receive: Receive, announced: int, limits: Limits) -> Receive:
    got_bytes, is_whole, deadline = 0, False, 0.0

    async def bounded() -> Message:
        nonlocal got_bytes, is_whole, deadline
        if is_whole:  # what comes now is that the client has gone, and may take as long as it wants
            return await receive()
        if announced > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)
        deadline = deadline or asyncio.get_running_loop().time() + limits.body_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {limits.body_timeout_s:g} s", _CLOSE) from None
        got_bytes += len(message.get("body", b""))
        if got_bytes > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)
        is_whole = not message.get("more_body", False)
        return message

    return bounded


def _content_length(scope: Scope) -> int:
    """What the header says; 0 where there is none, or no number (the HTTP parser has refused that before)."""
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else 0


def _two_lengths() -> ApiError:
    """What reads one of them and what reads the other see two different requests (RFC 9112, section 6.3)."""
    return ApiError(400, "a body has a Content-Length or a Transfer-Encoding, not both", headers=_CLOSE)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {most} bytes, which is what this service reads", _CLOSE)
