"""POST /v1/chat/completions: what the assistant says next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from fastapi import Request, Response

from fedlora_serve.batching.request import Finished
from fedlora_serve.http.api.guarded_route import counted_router, described
from fedlora_serve.http.generation.choices import Choices, FinishReason, finish_reason
from fedlora_serve.http.generation.event_stream import EventStream
from fedlora_serve.http.generation.logprobs import chat_logprobs, whole_chat_logprobs
from fedlora_serve.http.generation.prompts import chat_prompt, engine_of
from fedlora_serve.http.generation.requested_choices import check_stream_options, requested_choices
from fedlora_serve.http.generation.whole_choices import WholeChoice, whole_choices
from fedlora_serve.http.protocol.chat import (
    ChatAnswer,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
)
from fedlora_serve.http.protocol.envelope import EnvelopeFields, Usage
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.served_model import new_envelope, served_model
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of
from fedlora_serve.text.sampling import ChosenToken

router = counted_router()


@router.post("/v1/chat/completions", response_model=None, responses=described(ChatCompletion, streams=True))
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """The assistant's answer to a chat, whole or as a stream of chunks."""
    state, caller = service_of(request), caller_of(request)
    asked, param = _asked(body)
    n = body.choices_per_prompt
    async with served_model(state, caller, body.model, body.adapters or ()) as model:
        engine = engine_of(state)
        prompt = await chat_prompt(state, body, share=caller.name, adapter=model.version, choices=n)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        requested = requested_choices(
            state, engine, body, [prompt], asked=asked, default=None, logprobs=logprobs, param=param,
            virtual_tokens=model.virtual_tokens,
        )  # fmt: skip
        caller.take(len(prompt))
        choices = await Choices(state, engine, caller, model, requested, choices_per_prompt=n).submit()
    writer = _Writer(state, body, new_envelope(model, "chatcmpl"))
    if body.stream:
        return EventStream(choices, writer.chunks(choices), model.headers)
    whole = await whole_choices(request, choices, n)
    content = await asyncio.to_thread(writer.written, whole, choices.usage)
    return Response(content, media_type="application/json", headers=model.headers)


def _asked(body: ChatBody) -> tuple[int | None, str]:
    """How long the answer may get, and the field that says so. Raises ApiError for what does not go together."""
    check_stream_options(body)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: only together with logprobs", param="top_logprobs")
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise ApiError(
            400, f"max_tokens: max_completion_tokens is its newer name; give one of them, got {both[0]} and {both[1]}",
            param="max_tokens",
        )  # fmt: skip
    if body.max_completion_tokens is not None:
        return body.max_completion_tokens, "max_completion_tokens"
    return body.max_tokens, "max_tokens"


class _Writer:
    """Writes the choices of one request."""

    def __init__(self, state: ServiceState, body: ChatBody, envelope: EnvelopeFields) -> None:
        self._state, self._body, self._envelope = state, body, envelope

    def written(self, whole: Sequence[WholeChoice], usage: Usage) -> bytes:
        """All choices, as JSON. Log-probabilities may take a second: not for the event loop."""
        strings = self._state.token_strings
        choices = (
            ChatChoice.model_construct(
                index=index,
                message=ChatAnswer(role="assistant", content=choice.text, refusal=None),
                logprobs=whole_chat_logprobs(strings, choice.tokens) if self._body.logprobs else None,
                finish_reason=choice.finish_reason,
            )
            for index, choice in enumerate(whole)
        )
        completion = ChatCompletion.model_construct(
            **self._envelope, object="chat.completion", choices=choices, usage=usage
        )
        return written(completion)

    async def chunks(self, choices: Choices) -> AsyncIterator[ChatChunk]:
        """The role of each choice, their text as it comes, then their usage, where that is asked for."""
        for index in range(self._body.choices_per_prompt):
            yield self._chunk(index, ChatDelta(role="assistant", content=""))
        async for index, event in choices.events():
            if isinstance(event, Finished):
                chunk = self._chunk(index, ChatDelta(), reason=finish_reason(event))
            else:
                chunk = self._chunk(index, ChatDelta(content=event.text), self._logprobs(event.tokens))
            if self._body.includes_running_usage:
                chunk.usage = choices.usage
            yield chunk
        if self._body.includes_usage:
            yield self._with_usage([], choices.usage)

    def _logprobs(self, tokens: Sequence[ChosenToken]) -> ChatLogprobs | None:
        return chat_logprobs(self._state.token_strings, tokens) if self._body.logprobs else None

    def _chunk(
        self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None, reason: FinishReason | None = None
    ) -> ChatChunk:
        """`usage` is null but in the last chunk, unless it is told as it grows; absent where it is not asked for."""
        choices = [ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)]
        if self._body.includes_usage:
            return self._with_usage(choices, None)
        return ChatChunk(**self._envelope, object="chat.completion.chunk", choices=choices)

    def _with_usage(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatChunk:
        return ChatChunk(**self._envelope, object="chat.completion.chunk", choices=choices, usage=usage)
