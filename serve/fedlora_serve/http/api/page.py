"""The page at `/`: a few static files, with a policy that lets a browser run these and talk to this service, no more."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.service.state import service_of

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for each time, and answered 304
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


class PageService(BaseModel):
    """What the page shows of a service, before it has a key."""

    generates: bool
    chats: bool
    keys_required: bool
    admin_is_set: bool
    has_folder: bool


def _file(content: bytes, ending: str) -> _File:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, {**_HEADERS, "ETag": etag, "Content-Type": f"{_TYPES[ending]}; charset=utf-8"})


_FILES = {
    file.name: _file(file.read_bytes(), file.name.rpartition(".")[2])
    for file in (files("fedlora_serve.http.api") / "page").iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.get("/page/service.json")
async def page_service(request: Request) -> PageService:
    """What the page shows."""
    service = service_of(request)
    return PageService(
        generates=service.engine is not None,
        chats=service.template is not None,
        keys_required=service.keys.are_required,
        admin_is_set=service.keys.admin_is_set,
        has_folder=service.adapter_folder is not None,
    )


@router.get("/page/{name}")
async def page_file(name: str, request: Request) -> Response:
    """A file of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = _FILES.get(name)
    if file is None:
        raise ApiError(404, "the page has no such file", code="not_found")
    if request.headers.get("if-none-match") == file.headers["ETag"]:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
