"""Whether the service is well, and what it has counted; and the counting of its answers."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedlora_serve.http.protocol.errors import ErrorBody
from fedlora_serve.http.service.metrics import Metrics
from fedlora_serve.http.service.state import service_of

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """Whether requests are answered."""

    status: Literal["ok", "unavailable"]
    message: str = ""


@router.get("/health", responses={503: {"model": Health}})
async def health(request: Request) -> Response:
    """Whether requests are answered. Needs no key."""
    service = service_of(request)
    engine = service.engine or service.encoder
    if engine is not None and (engine.trouble or not engine.is_alive):
        stopped = "the service is stopping, or its generator has died"
        told = Health(status="unavailable", message=engine.trouble or stopped)
        return JSONResponse(told.model_dump(), 503, {"Retry-After": "5"})
    return JSONResponse(Health(status="ok").model_dump())


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        401: {"model": ErrorBody},
        403: {"model": ErrorBody},
    },
)
async def metrics(request: Request) -> Response:
    """What the service has counted, for Prometheus. They name the adapters: where keys are set, one for all is needed."""
    service = service_of(request)
    service.keys.authorize_all(request.headers.get("authorization"))
    text = await asyncio.to_thread(service.metrics.text)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class CountResponses:
    """An application whose answers are counted by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.http_response(message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
