"""Routes for the operator: they need the admin key, and know who asks before they read what is sent."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer

from fedlora_serve.errors import ApiError
from fedlora_serve.http.access.keys import Keys
from fedlora_serve.http.api.guarded_route import GuardedRoute

INVALID, NOT_FOUND = "InvalidUserInput", "NotFoundError"  # vLLM's words


class AdminRoute(GuardedRoute):
    """A route that asks for the admin key first."""

    def check(self, keys: Keys, request: Request) -> None:
        keys.authorize_admin(request.headers.get("authorization"))


def admin_router() -> APIRouter:
    """A router of such routes, described as such."""
    key = HTTPBearer(auto_error=False, scheme_name="AdminKey", description="The admin key.")
    return APIRouter(route_class=AdminRoute, dependencies=[Depends(key)], tags=["adapters"])


def unknown_adapter(name: str) -> ApiError:
    return ApiError(
        404, f"The lora adapter '{name:.140}' cannot be found.", NOT_FOUND, "adapter_not_found", "lora_name"
    )
