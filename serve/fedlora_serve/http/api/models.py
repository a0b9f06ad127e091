"""GET /v1/models: the base and its adapters, as far as they exist for the caller."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Literal

from fastapi import Request, Response
from fedlora.family import DecoderShape
from pydantic import BaseModel

from fedlora_serve.adapters.leases import AdapterStatus
from fedlora_serve.adapters.signed import ReleaseInfo
from fedlora_serve.http.api.guarded_route import guarded_router, listed
from fedlora_serve.http.protocol.field_types import DIGEST_HEADER
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.leasing import unknown_model
from fedlora_serve.http.service.served_model import release_headers
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of

router = guarded_router()


class Release(BaseModel):
    """A release whose signature was verified when it was loaded."""

    name: str
    version: int
    digest: str  # of its manifest
    signer: str  # the id of the key

    @classmethod
    def of(cls, release: ReleaseInfo | None) -> Release | None:
        return None if release is None else cls(**asdict(release))


class Model(BaseModel):
    """What a request may name in `model`. Beside OpenAI's fields there are vLLM's, and the adapter's digest."""

    id: str
    object: Literal["model"] = "model"
    created: int  # unix seconds: when it was loaded
    owned_by: Literal["fedlora"] = "fedlora"
    root: str  # what it was loaded from
    parent: str | None = None  # the base of an adapter
    max_model_len: int  # tokens of a prompt and its answer
    digest: str  # sha256 of an adapter's values; the fingerprint of the base
    release: Release | None = None  # the signed release that an adapter comes from


class ModelList(BaseModel):
    """All of them, the base first."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models", response_model=ModelList, responses=listed(401, 500))
async def list_models(request: Request) -> Response:
    """What the caller may use."""
    state, caller = service_of(request), caller_of(request)

    def content() -> bytes:
        models = [_base(state), *(_adapter(state, status) for status in state.store.list())]
        return written(ModelList(data=[model for model in models if caller.may_use(model.id)]))

    answer = await asyncio.to_thread(content)  # there may be thousands
    return Response(answer, media_type="application/json")


@router.get("/v1/models/{model:path}", responses=listed(401, 404, 500))
async def get_model(model: str, request: Request, response: Response) -> Model:
    """One of them."""
    state, caller = service_of(request), caller_of(request)
    if caller.may_use(model):
        if model == state.base_name:
            return _base(state)
        status = state.store.status(model)
        if status is not None:
            response.headers[DIGEST_HEADER] = status.digest
            response.headers.update(release_headers([status.release] if status.release else []))
            return _adapter(state, status)
    raise await unknown_model(state, caller, model)


def _base(state: ServiceState) -> Model:
    return Model(
        id=state.base_name,
        created=int(state.started_at),
        root=state.base.source,
        max_model_len=_context(state),
        digest=state.base.fingerprint,
    )


def _adapter(state: ServiceState, status: AdapterStatus) -> Model:
    return Model(
        id=status.name,
        created=int(status.loaded_at),
        root=status.source.name,  # where it lies on this machine is nobody's business
        parent=state.base_name,
        max_model_len=_context(state),
        digest=status.digest,
        release=Release.of(status.release),
    )


def _context(state: ServiceState) -> int:
    if state.engine is not None:
        return state.engine.max_tokens
    shape = state.base.model
    assert not isinstance(shape, DecoderShape), "a decoder is served by an engine"
    return shape.max_positions
