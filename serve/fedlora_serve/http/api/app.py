"""The application: every route of a service, one shape of errors, one description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fedlora.version import __version__

from fedlora_serve.http.api import adapters, chat, classification, completions, embeddings, metrics, models, page
from fedlora_serve.http.api.error_handlers import add_error_handlers
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.http.transport.head_requests import HeadRequests


def create_app(state: ServiceState) -> FastAPI:
    """The application of one service. Sizes and times are bounded around it (`body_limit.py`, `client_connection.py`)."""
    # The pages that FastAPI has for its description load scripts from elsewhere.
    app = FastAPI(title="fedlora", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = state
    for part in (completions, chat, embeddings, classification, models, adapters, metrics, page):
        app.include_router(part.router)
    add_error_handlers(app)
    app.add_middleware(HeadRequests)
    app.openapi = lambda: _description(app, state)  # type: ignore[method-assign]
    return app


def _description(app: FastAPI, state: ServiceState) -> dict[str, Any]:
    """The OpenAPI document, without FastAPI's own 422: what is wrong with a body is 400 here. Keys only where there are."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                if not state.keys.are_required:
                    operation.pop("security", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
