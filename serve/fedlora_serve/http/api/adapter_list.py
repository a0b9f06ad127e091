"""The adapters of a service, with their versions, and which of them stay in memory."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import Request
from fedlora.errors import UnknownAdapterError
from pydantic import BaseModel

from fedlora_serve.http.api.admin_route import admin_router, unknown_adapter
from fedlora_serve.http.api.guarded_route import guarded_router, listed
from fedlora_serve.http.service.state import caller_of, service_of


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


class AdapterList(BaseModel):
    """All adapters, in alphabetical order."""

    object: Literal["list"] = "list"
    data: list[AdapterInfo]


router = guarded_router()
admin = admin_router()


@router.get("/v1/adapters", tags=["adapters"], responses=listed(401))
async def list_adapters(request: Request) -> AdapterList:
    """The adapters that the caller's key may use, with their versions."""
    service, caller = service_of(request), caller_of(request)
    shown = service.adapter_folder.shown if service.adapter_folder else lambda source: source.name
    infos = [
        AdapterInfo(
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
        )
        for status in await asyncio.to_thread(service.store.list)  # there may be thousands
        if caller.may_use(status.name)
    ]
    return AdapterList(data=infos)


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


router.include_router(admin)
