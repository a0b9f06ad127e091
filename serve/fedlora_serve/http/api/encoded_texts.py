"""What the routes of an encoder share: texts become tokens, and these what the encoder gives, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.errors import BusyError
from fedlora_serve.http.access.callers import Caller
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.service.served_model import ServedModel
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.text_encoder import TextEncoder, batches_by_length

_LOOK_S = 1.0  # at whether the encoder still answers
AT_ONCE = 2048  # characters, tokens or numbers: within a millisecond
_TURN_TOKENS = 512  # with padding, of a caller's texts before others have their turn

Texts = Sequence[str | tuple[int, ...]]
Rows = Sequence[Sequence[int]]
Compute = Callable[[Rows, LoadedAdapter | None], NDArray[Any]]  # [S, E] of some texts
_T = TypeVar("_T")


async def tokens_of_texts(state: ServiceState, caller: Caller, encoder: TextEncoder, texts: Texts) -> Rows:
    """The tokens of each text. Raises ApiError for too many texts, and for one that the base cannot read."""
    most = state.limits.max_batch_prompts
    if len(texts) > most:
        raise ApiError(400, f"input: expected at most {most} texts in one request, got {len(texts)}", param="input")
    is_small = sum(map(len, texts)) <= AT_ONCE
    rows = await done(state, caller, lambda: [_tokens(encoder, text) for text in texts], at_once=is_small)
    for row in rows:
        if not 1 <= len(row) <= encoder.max_tokens:
            raise ApiError(
                400,
                f"input: expected texts of 1 to {encoder.max_tokens} tokens, got one of {_told(len(row), encoder)}; "
                "divide it",
                code="context_length_exceeded",
                param="input",
            )
        if (largest := max(row)) >= (vocabulary := state.base.model.vocab_size):
            raise ApiError(
                400,
                f"input: expected token ids from 0 to {vocabulary - 1}, which the base has, got {largest}; send texts",
                param="input",
            )
    return rows


async def done(state: ServiceState, caller: Caller, work: Callable[[], _T], *, at_once: bool) -> _T:
    """What `work` returns: a little is done here, and much in its turn, off the event loop."""
    return work() if at_once else await state.few_threads.run(caller.name, work)


async def computed(
    state: ServiceState, caller: Caller, encoder: TextEncoder, compute: Compute, model: ServedModel, rows: Rows
) -> NDArray[Any]:  # [S, E]
    """What `compute` gives of each text, some at a time: callers take turns, so that many of one hold up no others."""
    result: NDArray[Any] | None = None
    for some in batches_by_length([len(row) for row in rows], _TURN_TOKENS):
        part = await _some(state, caller, encoder, compute, model, [rows[number] for number in some])
        if result is None:
            result = np.empty((len(rows), part.shape[1]), part.dtype)
        result[some] = part
    assert result is not None  # a request has a text
    return result


async def _some(
    state: ServiceState, caller: Caller, encoder: TextEncoder, compute: Compute, model: ServedModel, rows: Rows
) -> NDArray[Any]:
    """Of these texts; the adapter stays in memory until its last use has ended."""
    lease = model.lease()
    computing = state.one_thread.submit(caller.name, lambda: compute(rows, lease.version if lease else None))
    if lease:
        computing.add_done_callback(lambda _: lease.release())
    waiting = asyncio.wrap_future(computing)
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=_LOOK_S)
            if encoder.watch.is_lost and not waiting.done():  # it, or one before it, holds the thread and does not end
                raise BusyError(encoder.trouble)
    finally:
        waiting.cancel()  # where it has not begun
    return waiting.result()


def _told(tokens: int, encoder: TextEncoder) -> str:
    """How many tokens a text has; where it has many more than it may, the rest was not read."""
    most = 2 * encoder.max_tokens
    return f"more than {most}" if tokens > most else str(tokens)


def _tokens(encoder: TextEncoder, text: str | tuple[int, ...]) -> Sequence[int]:
    return text if isinstance(text, tuple) else encoder.tokens(text)
