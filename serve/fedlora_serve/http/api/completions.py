"""POST /v1/completions: what follows a text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from fastapi import Request, Response

from fedlora_serve.batching.request import Finished
from fedlora_serve.http.api.guarded_route import counted_router, described
from fedlora_serve.http.generation.choices import Choices, FinishReason, finish_reason
from fedlora_serve.http.generation.event_stream import EventStream
from fedlora_serve.http.generation.logprobs import completion_logprobs
from fedlora_serve.http.generation.prompts import completion_prompts, engine_of
from fedlora_serve.http.generation.requested_choices import check_stream_options, requested_choices
from fedlora_serve.http.generation.whole_choices import WholeChoice, whole_choices
from fedlora_serve.http.protocol.completions import Completion, CompletionBody, CompletionChoice
from fedlora_serve.http.protocol.envelope import EnvelopeFields, Usage
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.served_model import new_envelope, served_model
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of
from fedlora_serve.text.sampling import ChosenToken
from fedlora_serve.text.tokenizer import decoded

router = counted_router()

_DEFAULT_TOKENS = 16  # as OpenAI has it


@router.post("/v1/completions", response_model=None, responses=described(Completion, streams=True))
async def create_completion(body: CompletionBody, request: Request) -> Response:
    """What follows each prompt, whole or as a stream of chunks."""
    state, caller = service_of(request), caller_of(request)
    _check(body)
    n = body.choices_per_prompt
    async with served_model(state, caller, body.model, body.adapters or ()) as model:
        engine = engine_of(state)
        prompts = await completion_prompts(
            state, body.prompt, share=caller.name, choices=n, add_special_tokens=body.add_special_tokens is not False
        )
        requested = requested_choices(
            state, engine, body, prompts, asked=body.max_tokens, default=_DEFAULT_TOKENS, logprobs=body.logprobs,
            param="max_tokens", virtual_tokens=model.virtual_tokens,
        )  # fmt: skip
        writer = _Writer(state, body, new_envelope(model, "cmpl"), prompts)
        caller.take(sum(map(len, prompts)))
        choices = await Choices(state, engine, caller, model, requested, choices_per_prompt=n).submit()
    if body.stream:
        return EventStream(choices, writer.chunks(choices), model.headers)
    whole = await whole_choices(request, choices, len(requested))
    content = await asyncio.to_thread(writer.written, whole, choices.usage)
    return Response(content, media_type="application/json", headers=model.headers)


def _check(body: CompletionBody) -> None:
    check_stream_options(body)
    if body.best_of not in (None, body.choices_per_prompt):
        raise ApiError(
            400, f"best_of: expected n ({body.choices_per_prompt}), got {body.best_of}; no answer is thrown away here",
            param="best_of",
        )  # fmt: skip
    if body.echo and body.logprobs is not None:
        raise ApiError(
            400, "echo: not together with logprobs, which this service does not compute for a prompt; leave one out",
            param="echo",
        )  # fmt: skip


class _Writer:
    """Writes the choices of one request. A choice's first text begins with its prompt, where that is asked for."""

    def __init__(
        self, state: ServiceState, body: CompletionBody, envelope: EnvelopeFields, prompts: Sequence[tuple[int, ...]]
    ) -> None:
        self._state, self._body, self._envelope = state, body, envelope
        self._echo: dict[int, str] = {}  # {index: what stands before it, until it is written}
        if body.echo:
            n = body.choices_per_prompt
            texts = [self._text(given, tokens) for given, tokens in zip(body.prompt, prompts, strict=True)]
            self._echo = {index * n + number: text for index, text in enumerate(texts) for number in range(n)}
        self._offsets: dict[int, int] = {}  # {index: characters that were written}

    def choice(
        self, index: int, text: str, tokens: Sequence[ChosenToken], *, reason: FinishReason | None = None
    ) -> CompletionChoice:
        """The next part of a choice, with what `logprobs` asks for."""
        logprobs, likeliest = None, self._body.logprobs
        if likeliest is not None and tokens:
            offset = self._offsets.get(index, 0)
            logprobs = completion_logprobs(self._state.token_strings, tokens, offset=offset, top=likeliest > 0)
            self._offsets[index] = offset + sum(map(len, logprobs.tokens))
        text = self._echo.pop(index, "") + text
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)

    def completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(**self._envelope, object="text_completion", choices=choices, usage=usage)

    def written(self, whole: Sequence[WholeChoice], usage: Usage) -> bytes:
        """All choices, as JSON. Log-probabilities may take a second: not for the event loop."""

        def choices() -> Iterator[CompletionChoice]:
            for index, one in enumerate(whole):
                yield self.choice(index, one.text, one.tokens, reason=one.finish_reason)
                one.tokens.clear()

        return written(
            Completion.model_construct(**self._envelope, object="text_completion", choices=choices(), usage=usage)
        )

    async def chunks(self, choices: Choices) -> AsyncIterator[Completion]:
        """The choices as they come, then their usage, where that is asked for."""
        async for index, event in choices.events():
            if isinstance(event, Finished):
                choice = self.choice(index, "", (), reason=finish_reason(event))
            else:
                choice = self.choice(index, event.text, event.tokens)
            chunk = self._chunk([choice])
            if self._body.includes_running_usage:
                chunk.usage = choices.usage
            yield chunk
        if self._body.includes_usage:
            yield self.completion([], choices.usage)

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        """`usage` is null but in the last chunk, unless it is told as it grows; absent where it is not asked for."""
        if self._body.includes_usage:
            return self.completion(choices)
        return Completion(**self._envelope, object="text_completion", choices=choices)

    def _text(self, given: str | tuple[int, ...], tokens: Sequence[int]) -> str:
        return given if isinstance(given, str) else decoded(self._state.tokenizer, tokens)
