"""Routes for the operator: they need the admin key, and know who asks before they read what is sent."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from fedlora_serve.http.errors import ApiError, ErrorBody
from fedlora_serve.http.state import service_of

INVALID, NOT_FOUND = "InvalidUserInput", "NotFoundError"  # vLLM's words


class AdminRoute(APIRoute):
    """A route that asks for the admin key first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            service_of(request).keys.authorize_admin(request.headers.get("authorization"))
            return await handle(request)

        return guarded


def admin_router() -> APIRouter:
    """A router of such routes, described as such."""
    key = HTTPBearer(auto_error=False, scheme_name="AdminKey", description="The admin key.")
    return APIRouter(route_class=AdminRoute, dependencies=[Depends(key)], tags=["adapters"])


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers that is no success, for its description."""
    return {code: {"model": ErrorBody} for code in codes}


def unknown_adapter(name: str) -> ApiError:
    return ApiError(
        404, f"The lora adapter '{name:.140}' cannot be found.", NOT_FOUND, "adapter_not_found", "lora_name"
    )
