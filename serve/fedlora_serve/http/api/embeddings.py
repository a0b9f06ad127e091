"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
import time

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from fedlora_serve.embedding import Embedder
from fedlora_serve.http.api.encoded_texts import AT_ONCE, computed, done, tokens_of_texts
from fedlora_serve.http.api.guarded_route import counted_router, described
from fedlora_serve.http.protocol.embeddings import Embedding, EmbeddingBody, Embeddings
from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.served_model import served_model
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of
from fedlora_serve.http.transport.client_connection import while_connected

router = counted_router()


@router.post("/v1/embeddings", response_model=None, responses=described(Embeddings))
async def create_embeddings(body: EmbeddingBody, request: Request) -> Response:
    """The vector of each text."""
    state, caller, began = service_of(request), caller_of(request), time.perf_counter()
    async with served_model(state, caller, body.model, body.adapters or ()) as model:
        embedder = _embedder(state)
        _check(embedder, body)
        asked = _normalizes(body)
        rows = await tokens_of_texts(state, caller, embedder, body.input)
        tokens = sum(map(len, rows))
        caller.take(tokens)
        state.metrics.request_started(model.label)
        vectors = await while_connected(request.receive, computed(state, caller, embedder, embedder.embed, model, rows))
        if embedder.normalized if asked is None else asked:
            vectors = _unit(vectors)
    state.metrics.embedded(model.label, time.perf_counter() - began, tokens)
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)

    def content() -> bytes:
        data = [
            Embedding(object="embedding", index=index, embedding=_numbers(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ]
        return written(Embeddings(object="list", data=data, model=model.name, usage=usage))

    answer = await done(state, caller, content, at_once=vectors.size <= AT_ONCE)
    return Response(answer, media_type="application/json", headers=model.headers)


def _embedder(state: ServiceState) -> Embedder:
    if state.classifier is not None:
        raise ApiError(
            400,
            f"{state.base_name} gives labels ({state.base.model.model_type} with a head), no embeddings; use /v1/classify",
            code="unsupported_model",
            param="model",
        )
    if state.embedder is None:
        raise ApiError(
            400,
            f"{state.base_name} generates text ({state.base.model.model_type}): it gives no embeddings; use "
            "/v1/completions or /v1/chat/completions",
            code="unsupported_model",
            param="model",
        )
    return state.embedder


def _check(embedder: Embedder, body: EmbeddingBody) -> None:
    if body.dimensions not in (None, embedder.hidden_size):
        raise ApiError(
            400,
            f"dimensions: expected {embedder.hidden_size}, which this base has, got {body.dimensions}; leave it out",
            param="dimensions",
        )


def _normalizes(body: EmbeddingBody) -> bool | None:
    """Whether vectors are to have length 1; None where nobody says. Raises ApiError for both."""
    if None not in (body.normalize, body.use_activation) and body.normalize != body.use_activation:
        message = "use_activation: another name of normalize; give one of them, or both alike"
        raise ApiError(400, message, param="use_activation")
    return body.use_activation if body.normalize is None else body.normalize


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:  # [n, H]
    """The vectors scaled to length 1, as OpenAI's and vLLM's are: their products are cosines."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    unit: NDArray[np.float32] = vectors / lengths
    return unit


def _numbers(vector: NDArray[np.float32], encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.astype(np.float64).tolist()
    return numbers
