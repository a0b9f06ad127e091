"""Adapters over HTTP: load and unload as vLLM's dynamic LoRA endpoints do it.

Bodies, status codes and the texts of successes are vLLM's (docs.vllm.ai, "Dynamically serving LoRA adapters"), so that its
clients work. What differs: the admin key is needed, a path is relative to the adapter folder, and an unload waits until no
request uses the adapter, for a while; 202 says that some still do. Changes are made one at a time, off the event loop.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from fedlora.errors import AdapterError, AdapterExistsError, AdapterStoreFullError, UnknownAdapterError
from pydantic import BaseModel

from fedlora_serve.errors import ApiError
from fedlora_serve.http.api import adapter_list
from fedlora_serve.http.api.admin_route import INVALID, NOT_FOUND, admin_router, unknown_adapter
from fedlora_serve.http.api.guarded_route import listed
from fedlora_serve.http.service.adapter_folder import AdapterFolder, NoSuchAdapterError
from fedlora_serve.http.service.state import ServiceState, service_of

_CHECK_EVERY_S = 0.02
_TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}}


class LoadAdapter(BaseModel):
    """vLLM's request to load an adapter; further fields of it are ignored."""

    lora_name: str
    lora_path: str  # relative to the adapter folder
    load_inplace: bool = False  # replace the adapter of this name


class UnloadAdapter(BaseModel):
    """vLLM's request to unload an adapter."""

    lora_name: str
    lora_int_id: int | None = None  # vLLM's own number; not used


router = APIRouter()
admin = admin_router()


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


for part in (admin, adapter_list.router):
    router.include_router(part)
