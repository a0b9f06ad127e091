"""Routes that know who calls before they read what is sent, and what their answers may be."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from fedlora_serve.http.access.keys import Keys
from fedlora_serve.http.protocol.errors import ErrorBody
from fedlora_serve.http.protocol.field_types import ADAPTERS_HEADER, DIGEST_HEADER, RELEASE_HEADER, SIGNER_HEADER
from fedlora_serve.http.service.state import caller_of, service_of
from fedlora_serve.http.transport.body_values import BoundedRequest

_ERRORS = {
    400: "A field is wrong, or asks for what this service does not do.",
    401: "A key is needed, or this one is not known.",
    403: "The key is not good for this.",
    404: "No such model or adapter.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not announced as JSON.",
    429: "The key has used up its rate; Retry-After says when to go on.",
    500: "The service failed.",
    503: "The service is busy or stopping; Retry-After says when to try again.",
}


class GuardedRoute(APIRoute):
    """A route that asks for a key, where there are keys, before it reads the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        validate = partial(self.body_field.validate, loc=("body",)) if self.body_field else None

        async def guarded(request: Request) -> Response:
            service = service_of(request)
            self.check(service.keys, request)
            bounded = BoundedRequest(request.scope, request.receive)
            bounded.validate = validate
            bounded.elsewhere = partial(service.few_threads.run, self.share(request))
            return await handle(bounded)

        return guarded

    def share(self, request: Request) -> str:
        """Under whose name the request is read."""
        return caller_of(request).name

    def check(self, keys: Keys, request: Request) -> None:
        """Raises ApiError for who is not let in; tells the request who is."""
        peer = request.client.host if request.client else ""
        request.state.caller = keys.authorize(request.headers.get("authorization"), peer)


class CountedRoute(GuardedRoute):
    """A route whose requests are counted before they are read, whatever becomes of them.

    Who has no room left for one more answer is told so before anything is read.
    """

    def check(self, keys: Keys, request: Request) -> None:
        super().check(keys, request)
        caller = caller_of(request)
        caller.begin()
        if (engine := service_of(request).engine) is not None:
            engine.check_room(caller.name, 1)


def guarded_router() -> APIRouter:
    """A router of such routes, described as such."""
    return _router(GuardedRoute)


def counted_router() -> APIRouter:
    """A router of routes that compute."""
    return _router(CountedRoute)


def _router(kind: type[GuardedRoute]) -> APIRouter:
    key = HTTPBearer(auto_error=False, description="One of the service's keys, where it has keys.")
    return APIRouter(route_class=kind, dependencies=[Depends(key)])


def listed(*errors: int) -> dict[int | str, Any]:
    """The errors of a route, for its description."""
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in errors}


def described(model: type, *, streams: bool = False) -> dict[int | str, Any]:
    """What a route answers that takes a body and computes, for its description."""
    digest = {"description": "sha256 of the adapter that answered; none: the base", "schema": {"type": "string"}}
    text = {"schema": {"type": "string"}}
    release = {RELEASE_HEADER: {"description": "name and version of the signed release that answered", **text}}
    several = {ADAPTERS_HEADER: {"description": "of several: the name, weight and digest of each", **text}}
    signer = {SIGNER_HEADER: {"description": "the id of the key that signed it", **text}}
    success: dict[str, Any] = {"model": model, "headers": {DIGEST_HEADER: digest, **several, **release, **signer}}
    if streams:
        success["content"] = {"text/event-stream": {}}  # OpenAPI 3.1 has no word for the schema of one event
    return {200: success, **listed(*_ERRORS)}


class AdminRoute(GuardedRoute):
    """A route that asks for the admin key first."""

    def share(self, request: Request) -> str:
        return "the operator"

    def check(self, keys: Keys, request: Request) -> None:
        keys.authorize_admin(request.headers.get("authorization"))


def admin_router() -> APIRouter:
    """A router of admin routes, described as such."""
    key = HTTPBearer(auto_error=False, scheme_name="AdminKey", description="The admin key.")
    return APIRouter(route_class=AdminRoute, dependencies=[Depends(key)], tags=["adapters"])
