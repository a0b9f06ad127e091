"""Choices as server-sent events, one chunk each (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedlora_serve.http.generation.choices import Choices
from fedlora_serve.http.protocol.errors import ApiError, api_error, error_json
from fedlora_serve.http.transport.client_connection import ClientGoneError, while_connected

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nothing between us and the client may collect
_COMMENT = b": waiting\n\n"
QUIET_S = 15.0  # proxies cut a connection that is silent for long, and a choice may wait for others
_logger = logging.getLogger(__name__)


class EventStream(Response):
    """Chunks as they come, then [DONE]; or an error, which is the last event. The choices of a client that leaves are
    cancelled."""

    media_type = "text/event-stream"

    def __init__(self, choices: Choices, chunks: AsyncIterator[BaseModel], headers: Mapping[str, str]) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        del self.headers["content-length"]  # nobody knows it
        self._choices, self._chunks = choices, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(receive, self._send_all(send))
        except ClientGoneError:
            pass
        finally:
            self._choices.cancel()

    async def _send_all(self, send: Send) -> None:
        async for event in with_signs_of_life(self._events(), QUIET_S):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield _event(chunk.model_dump_json(exclude_unset=True))
        except ClientGoneError:
            raise
        except Exception as error:
            if not isinstance(error, ApiError):
                _logger.exception("a stream failed")
            yield _event(error_json(api_error(error)))
        else:
            yield _event("[DONE]")


async def with_signs_of_life(events: AsyncIterator[bytes], quiet_s: float) -> AsyncIterator[bytes]:
    """The events, and a comment, which clients skip, whenever none comes for `quiet_s`."""
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait((coming,), timeout=quiet_s))[0]:
                yield _COMMENT
        finally:
            coming.cancel()
        event = coming.result()
        if event is None:
            return
        yield event


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
