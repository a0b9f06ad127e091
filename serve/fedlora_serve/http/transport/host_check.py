"""A service without keys, for this machine alone: not for pages of others that a browser on it shows.

A page may point its own name at 127.0.0.1 and then read what is served there (DNS rebinding). What it cannot change is
the Host header, which has that name.
"""

from __future__ import annotations

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from fedlora_serve.http.protocol.errors import ApiError, ErrorResponse


def is_loopback(host: str) -> bool:
    """Whether a name or an address is of this machine alone, whoever resolves it."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class HostCheck:
    """An application that is asked for by a loopback address or name; anything else is 403."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if all(is_loopback(_without_port(host)) for host in hosts):
            await self._app(scope, receive, send)
            return
        message = (
            f"this service is open to its own machine only, and was asked for as {hosts[0]!r:.80}; ask for it by its "
            "address, or start it with keys, or with --allow-open"
        )
        await ErrorResponse(ApiError(403, message, "permission_error", "host_refused"))(scope, receive, send)


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name.lower() if name and port.isdigit() else host.lower()
