"""Adapters over HTTP: load and unload as vLLM's dynamic LoRA endpoints do it.

Bodies, status codes and the texts of successes are vLLM's (docs.vllm.ai, "Dynamically serving LoRA adapters"), so that its
clients work. What differs: the admin key is needed, a path is relative to the adapter folder, and an unload waits until no
request uses the adapter, for a while; 202 says that some still do. Changes are made one at a time, off the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from fedlora.errors import AdapterError, AdapterExistsError, AdapterStoreFullError, UnknownAdapterError
from pydantic import BaseModel

from fedlora_serve.adapters.leases import AdapterStatus
from fedlora_serve.http.api.guarded_route import admin_router, guarded_router, listed
from fedlora_serve.http.api.models import Release
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.request_body import NamedFields
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.adapter_folder import AdapterFolder, NoSuchAdapterError
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of

_CHECK_EVERY_S = 0.02
_TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}}
INVALID, NOT_FOUND = "InvalidUserInput", "NotFoundError"  # vLLM's words


class AdapterInfo(BaseModel):
    """One adapter."""

    name: str
    version: int  # 1 for the first that was loaded under its name
    digest: str
    rank: int
    size_bytes: int
    source: str
    pinned: bool
    resident: bool  # its values are in memory
    users: int  # requests that use it now
    loaded_at: float  # unix seconds
    last_used_at: float | None
    release: Release | None = None  # the signed release that it comes from


class AdapterList(BaseModel):
    """All adapters, in alphabetical order."""

    object: Literal["list"] = "list"
    data: list[AdapterInfo]


class LoadAdapter(NamedFields):
    """vLLM's request to load an adapter."""

    lora_name: str
    lora_path: str  # relative to the adapter folder
    load_inplace: bool = False  # replace the adapter of this name


class UnloadAdapter(NamedFields):
    """vLLM's request to unload an adapter."""

    lora_name: str
    lora_int_id: int | None = None  # vLLM's own number; not used


listing = guarded_router()
admin = admin_router()


@listing.get("/v1/adapters", tags=["adapters"], response_model=AdapterList, responses=listed(401))
async def list_adapters(request: Request) -> Response:
    """The adapters that the caller's key may use, with their versions."""
    service, caller = service_of(request), caller_of(request)
    shown = service.adapter_folder.shown if service.adapter_folder else lambda source: source.name

    def content() -> bytes:
        infos = [info(status) for status in service.store.list() if caller.may_use(status.name)]
        return written(AdapterList(data=infos))

    def info(status: AdapterStatus) -> AdapterInfo:
        return AdapterInfo(
            name=status.name,
            version=status.number,
            digest=status.digest,
            rank=status.rank,
            size_bytes=status.size_bytes,
            source=shown(status.source),
            pinned=status.pinned,
            resident=status.resident,
            users=status.users,
            loaded_at=status.loaded_at,
            last_used_at=status.last_used_at,
            release=Release.of(status.release),
        )

    answer = await asyncio.to_thread(content)  # there may be thousands
    return Response(answer, media_type="application/json")


@admin.post("/v1/adapters/{name:path}/pin", status_code=204, responses=listed(400, 401, 403, 404, 503))
async def pin_adapter(name: str, request: Request) -> None:
    """Keep an adapter, and each that replaces it, in memory."""
    try:
        await asyncio.to_thread(service_of(request).store.pin, name)
    except UnknownAdapterError:
        raise unknown_adapter(name) from None


@admin.post("/v1/adapters/{name:path}/unpin", status_code=204, responses=listed(401, 403, 404))
async def unpin_adapter(name: str, request: Request) -> None:
    """Let an adapter's memory go to others again."""
    try:
        service_of(request).store.unpin(name)
    except UnknownAdapterError:
        raise unknown_adapter(name) from None


@admin.post(
    "/v1/load_lora_adapter",
    response_class=Response,
    responses={200: _TEXT, **listed(400, 401, 403, 404, 408, 413, 415, 503)},
)
async def load_lora_adapter(body: LoadAdapter, request: Request) -> Response:
    """Load an adapter from the adapter folder. It answers once the adapter can be used."""
    service, name = service_of(request), body.lora_name
    if not name or not body.lora_path:
        raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", INVALID)
    if name == service.base_name:
        raise ApiError(400, f"'{name}' is the base's name; give the adapter another one", INVALID, param="lora_name")
    folder = service.adapter_folder
    if folder is None:
        raise ApiError(
            403, "this service has no folder to load from; start it with --adapter-folder", "permission_error"
        )
    async with service.changing_adapters:
        try:
            await asyncio.to_thread(_load, service, folder, body)
        except AdapterExistsError:
            raise ApiError(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                INVALID,
                "adapter_exists",
                "lora_name",
            ) from None
        except NoSuchAdapterError as error:
            raise ApiError(404, str(error), NOT_FOUND, "adapter_not_found", "lora_path") from None
        except AdapterStoreFullError:
            raise  # 503, or 400 where it never fits
        except AdapterError as error:
            raise ApiError(400, str(error), INVALID, "adapter_refused", "lora_path") from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@admin.post(
    "/v1/unload_lora_adapter",
    response_class=Response,
    responses={200: _TEXT, 202: _TEXT, **listed(400, 401, 403, 404, 408, 413, 415)},
)
async def unload_lora_adapter(body: UnloadAdapter, request: Request) -> Response:
    """Take an adapter away. New requests do not find it; those that use it end with it: 202 where some still run."""
    service, name = service_of(request), body.lora_name
    if not name:
        raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", INVALID)
    async with service.changing_adapters:
        try:
            unloading = service.store.unload(name)
        except UnknownAdapterError:
            raise unknown_adapter(name) from None
        service.metrics.forget(name)
        if service.adapter_folder:
            await asyncio.to_thread(service.adapter_folder.drop, name)
    for _ in range(int(service.limits.unload_timeout_s / _CHECK_EVERY_S)):
        if unloading.wait(0):
            return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
        await asyncio.sleep(_CHECK_EVERY_S)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed; requests that use it still run.", 202)


def _load(service: ServiceState, folder: AdapterFolder, body: LoadAdapter) -> None:
    copy = folder.copy(body.lora_path)
    try:
        service.store.load(body.lora_name, copy, replace=body.load_inplace)
    except BaseException as error:
        folder.discard(copy)
        if isinstance(error, AdapterError):  # which tells where the copy was
            raise type(error)(str(error).replace(str(copy), body.lora_path)) from None
        raise
    folder.keep(body.lora_name, copy)


def unknown_adapter(name: str) -> ApiError:
    return ApiError(
        404, f"The lora adapter '{name:.140}' cannot be found.", NOT_FOUND, "adapter_not_found", "lora_name"
    )


router = APIRouter()  # of its own: a route that is included in a guarded one would seem to take either key
for part in (listing, admin):
    router.include_router(part)
