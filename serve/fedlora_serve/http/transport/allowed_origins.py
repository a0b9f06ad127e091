"""Pages of other origins that may call the service from a browser (https://fetch.spec.whatwg.org/#http-cors-protocol).

A browser asks first, without a key, and lets a page read what it gets only where the service names the page's origin. No
cookies are at work: a page sends its key itself, in the header Authorization.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from fedlora.errors import ConfigError
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from fedlora_serve.http.protocol.field_types import ADAPTERS_HEADER, DIGEST_HEADER, RELEASE_HEADER, SIGNER_HEADER

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_origin(text: str) -> None:
    """Raises ConfigError for what no browser sends as the origin of a page."""
    if text in (ANY, "null"):  # a page of a file has the origin null
        return
    sent = _as_sent(text)
    if sent is None:
        raise ConfigError(
            f"allow_origin: expected the origin of a page, such as https://chat.example or http://localhost:3000, or * for "
            f"any, got {text!r:.80}"
        )
    if sent != text:
        raise ConfigError(f"allow_origin: a browser writes {text!r:.80} as {sent}; write it so")


def with_allowed_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, whose answers pages of these origins may read, and which answers the question of browsers first."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=(ANY,),  # those that are asked for, by name: clients send some of their own
        allow_private_network=True,  # a page from elsewhere calls a service on its reader's machine
        expose_headers=(DIGEST_HEADER, ADAPTERS_HEADER, RELEASE_HEADER, SIGNER_HEADER, "Retry-After"),
    )


def _as_sent(text: str) -> str | None:
    """The origin of a URL as a browser writes it; None where it is none."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None
    if not _is_origin(url) or not text.isascii() or not text.isprintable() or " " in text:
        return None
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{port}")


def _is_origin(url: SplitResult) -> bool:
    """Whether it has a scheme and a host, and nothing after them but a stroke."""
    return bool(
        url.scheme and url.hostname and "@" not in url.netloc and url.path in ("", "/") and not url.query + url.fragment
    )
