"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from fedlora_serve.embedding import Embedder, batches_by_length
from fedlora_serve.errors import BusyError
from fedlora_serve.http.access.callers import Caller
from fedlora_serve.http.api.guarded_route import counted_router, described
from fedlora_serve.http.protocol.embeddings import Embedding, EmbeddingBody, Embeddings
from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.served_model import ServedModel, served_model
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of
from fedlora_serve.http.transport.client_connection import while_connected

router = counted_router()
_LOOK_S = 1.0  # at whether the embedder still answers
_T = TypeVar("_T")
_AT_ONCE = 2048  # characters, tokens or numbers: within a millisecond
_TURN_TOKENS = 512  # with padding, of a caller's texts before others have their turn


@router.post("/v1/embeddings", response_model=None, responses=described(Embeddings))
async def create_embeddings(body: EmbeddingBody, request: Request) -> Response:
    """The vector of each text."""
    state, caller, began = service_of(request), caller_of(request), time.perf_counter()
    async with served_model(state, caller, body.model) as model:
        embedder = _embedder(state)
        _check(state, embedder, body)
        asked = _normalizes(body)
        is_small = sum(map(len, body.input)) <= _AT_ONCE
        rows = await _done(state, caller, lambda: [_tokens(embedder, text) for text in body.input], at_once=is_small)
        for row in rows:
            if not 1 <= len(row) <= embedder.max_tokens:
                raise ApiError(
                    400,
                    f"input: expected texts of 1 to {embedder.max_tokens} tokens, got one of {_told(len(row), embedder)}; "
                    "divide it",
                    code="context_length_exceeded",
                    param="input",
                )
            if (largest := max(row)) >= (vocabulary := state.base.model.vocab_size):
                raise ApiError(
                    400,
                    f"input: expected token ids from 0 to {vocabulary - 1}, which the base has, got {largest}; "
                    "send texts",
                    param="input",
                )
        tokens = sum(map(len, rows))
        caller.take(tokens)
        state.metrics.request_started(model.name)
        vectors = await while_connected(request.receive, _embedded(state, caller, embedder, model, rows))
        if embedder.normalized if asked is None else asked:
            vectors = _unit(vectors)
    state.metrics.embedded(model.name, time.perf_counter() - began, tokens)
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)

    def content() -> bytes:
        data = [
            Embedding(object="embedding", index=index, embedding=_numbers(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ]
        return written(Embeddings(object="list", data=data, model=model.name, usage=usage))

    answer = await _done(state, caller, content, at_once=vectors.size <= _AT_ONCE)
    return Response(answer, media_type="application/json", headers=model.headers)


async def _done(state: ServiceState, caller: Caller, work: Callable[[], _T], *, at_once: bool) -> _T:
    """What `work` returns: a little is done here, and much in its turn, off the event loop."""
    return work() if at_once else await state.few_threads.run(caller.name, work)


def _embedder(state: ServiceState) -> Embedder:
    if state.embedder is None:
        raise ApiError(
            400,
            f"{state.base_name} generates text ({state.base.model.model_type}): it gives no embeddings; use "
            "/v1/completions or /v1/chat/completions",
            code="unsupported_model",
            param="model",
        )
    return state.embedder


def _check(state: ServiceState, embedder: Embedder, body: EmbeddingBody) -> None:
    most = state.limits.max_batch_prompts
    if len(body.input) > most:
        raise ApiError(
            400, f"input: expected at most {most} texts in one request, got {len(body.input)}", param="input"
        )
    if body.dimensions not in (None, embedder.hidden_size):
        raise ApiError(
            400,
            f"dimensions: expected {embedder.hidden_size}, which this base has, got {body.dimensions}; leave it out",
            param="dimensions",
        )


def _told(tokens: int, embedder: Embedder) -> str:
    """How many tokens a text has; where it has many more than it may, the rest was not read."""
    most = 2 * embedder.max_tokens
    return f"more than {most}" if tokens > most else str(tokens)


def _normalizes(body: EmbeddingBody) -> bool | None:
    """Whether vectors are to have length 1; None where nobody says. Raises ApiError for both."""
    if None not in (body.normalize, body.use_activation) and body.normalize != body.use_activation:
        message = "use_activation: another name of normalize; give one of them, or both alike"
        raise ApiError(400, message, param="use_activation")
    return body.use_activation if body.normalize is None else body.normalize


def _tokens(embedder: Embedder, text: str | tuple[int, ...]) -> Sequence[int]:
    return text if isinstance(text, tuple) else embedder.tokens(text)


async def _embedded(
    state: ServiceState, caller: Caller, embedder: Embedder, model: ServedModel, rows: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """The vectors, some texts at a time: callers take turns, so that many texts of one hold up no others."""
    vectors = np.empty((len(rows), embedder.hidden_size), np.float32)
    for some in batches_by_length([len(row) for row in rows], _TURN_TOKENS):
        vectors[some] = await _some_embedded(state, caller, embedder, model, [rows[number] for number in some])
    return vectors


async def _some_embedded(
    state: ServiceState, caller: Caller, embedder: Embedder, model: ServedModel, rows: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """The vectors of these texts; the adapter stays in memory until its last use has ended."""
    lease = model.lease()

    def embed() -> NDArray[np.float32]:
        return embedder.embed(rows, lease.version if lease else None)

    computing = state.one_thread.submit(caller.name, embed)
    if lease:
        computing.add_done_callback(lambda _: lease.release())
    waiting = asyncio.wrap_future(computing)
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=_LOOK_S)
            if embedder.watch.is_lost and not waiting.done():  # it, or one before it, holds the thread and does not end
                raise BusyError(embedder.trouble)
    finally:
        waiting.cancel()  # where it has not begun
    return waiting.result()


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
