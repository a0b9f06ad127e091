"""A request's first line and headers, within their bound.

h11 bounds what it keeps of a head that is not whole yet; one that comes whole, in one piece, may be as long as the piece.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from fedlora_serve.http.protocol.errors import ApiError, ErrorResponse

_BESIDE_EACH_BYTES = 4  # ": " and the end of a header's line
_FIRST_LINE_BYTES = len("  HTTP/1.1\r\n?")


class HeadLimit:
    """An application that gets no request with a larger head: it is answered 400."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (size := _head_bytes(scope)) > self._max_bytes:
            message = f"the first line and the headers have {size} bytes; at most {self._max_bytes} are read"
            await ErrorResponse(ApiError(400, message, headers={"Connection": "close"}))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _head_bytes(scope: Scope) -> int:
    first = len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"]) + _FIRST_LINE_BYTES
    return first + sum(len(name) + len(value) + _BESIDE_EACH_BYTES for name, value in scope["headers"])
