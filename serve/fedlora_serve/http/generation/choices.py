"""The choices of one HTTP request: submitted all or none, counted, and cancelled when nobody wants them any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from fedlora_serve.batching.request import Event, Finished, Piece, Request, TextEngine
from fedlora_serve.http.access.keys import Caller
from fedlora_serve.http.generation.inbox import Inbox
from fedlora_serve.http.generation.requested_choices import RequestedChoice
from fedlora_serve.http.protocol.envelope import PromptTokensDetails, Usage
from fedlora_serve.http.protocol.errors import SERVER, ApiError
from fedlora_serve.http.service.served_model import ServedModel
from fedlora_serve.http.service.state import ServiceState, without_folders

FinishReason = Literal["stop", "length"]


_AT_ONCE_TOKENS = 1 << 16  # of prompts that are submitted before others on the event loop have their turn


class Choices:
    """Choices 0, 1, ... of one model, from their submission to their ends."""

    def __init__(
        self,
        state: ServiceState,
        engine: TextEngine,
        caller: Caller,
        model: ServedModel,
        requested: Sequence[RequestedChoice],
        *,
        choices_per_prompt: int,  # choices i * n to i * n + n - 1 are of prompt i
    ) -> None:
        """Nothing is submitted yet."""
        self.model, self._caller, self._engine, self._metrics = model, caller, engine, state.metrics
        self._requested, self._per_prompt = requested, choices_per_prompt
        parts = model.version.parts if model.version else ()
        self._folders = [state.base.directory, *(part.adapter.source.parent for part in parts)]
        self._started_at = time.perf_counter()
        self._last_at: dict[int, float] = {}  # when the last token of a choice came
        self._deadline = asyncio.get_running_loop().time() + state.limits.request_timeout_s
        self._timeout_s = state.limits.request_timeout_s
        self._inbox = Inbox(self._observe)
        self._requests: list[Request] = []
        self._completion_tokens: dict[int, int] = {}  # of each choice, so far
        self._ended: dict[int, Finished] = {}

    async def submit(self) -> Choices:
        """Submit all of them; what is raised for one takes back those before it."""
        submitted = 0
        try:
            for index, one in enumerate(self._requested):
                self._submit(index, one)
                submitted += len(one.prompt)
                if submitted > _AT_ONCE_TOKENS:
                    submitted = 0
                    await asyncio.sleep(0)
        except BaseException:
            self.cancel()
            raise
        return self

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What comes, (index, event), until all have ended. Raises ApiError where one fails or the time is over."""
        ended = 0
        while ended < len(self._requests):
            try:
                async with asyncio.timeout_at(self._deadline):
                    taken = await self._inbox.take()
            except TimeoutError:
                message = f"the answer was not there within {self._timeout_s:g} s; ask for fewer tokens, or later"
                raise ApiError(503, message, SERVER, "request_timeout", headers={"Retry-After": "5"}) from None
            for index, event in taken:
                if isinstance(event, Finished):
                    ended += 1
                    self._check(event)
                yield index, event

    def cancel(self) -> None:
        """Nobody wants what has not come yet."""
        for index, request in enumerate(self._requests):
            if index not in self._ended:
                self._engine.cancel(request)

    @property
    def usage(self) -> Usage:
        """What the choices took so far; a prompt counts once."""
        firsts = range(0, len(self._requested), self._per_prompt)
        prompt_tokens = sum(len(self._requested[index].prompt) for index in firsts)
        completion_tokens = sum(self._completion_tokens.values())
        cached = sum(self._ended[index].cached_tokens for index in firsts if index in self._ended)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    def _submit(self, index: int, requested: RequestedChoice) -> None:
        request = Request(
            prompt=requested.prompt,
            sampling=requested.sampling,
            on_event=self._inbox.receiver(index),
            adapter=self.model.lease(),
            share=self._caller.name,
        )
        self._engine.submit(request)
        self._requests.append(request)
        self._metrics.request_started(self.model.label)

    def _observe(self, index: int, at: float, event: Event) -> None:
        """Count what comes, whether or not somebody still waits for it."""
        name = self.model.label
        self._completion_tokens[index] = event.completion_tokens
        if isinstance(event, Piece):
            if index in self._last_at:
                self._metrics.token(name, at - self._last_at[index])
            else:
                self._metrics.first_token(name, at - self._started_at)
            self._last_at[index] = at
            return
        self._ended[index] = event
        self._caller.spend(event.completion_tokens)
        prompt_tokens = len(self._requested[index].prompt)
        seconds = at - self._started_at
        self._metrics.request_finished(name, event.reason, seconds, prompt_tokens, event.completion_tokens)

    def _check(self, ended: Finished) -> None:
        if ended.reason == "cancelled":  # not by its client, who would not be told
            message = "the service is stopping, and this answer was not finished; try again"
            raise ApiError(503, message, SERVER, "cancelled", headers={"Retry-After": "5"})
        if ended.reason == "error":
            message = without_folders(ended.message or "the answer could not be computed", *self._folders)
            raise ApiError(500, message, SERVER, "generation_failed")


def finish_reason(ended: Finished) -> FinishReason:
    """Why a choice that was not cancelled ended."""
    return "length" if ended.reason == "length" else "stop"
