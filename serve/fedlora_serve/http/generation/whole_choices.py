"""Choices that are sent when all of them have ended."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from fedlora_serve.batching.request import Finished
from fedlora_serve.http.generation.choices import Choices, FinishReason, finish_reason
from fedlora_serve.http.transport.client_connection import while_connected
from fedlora_serve.text.sampling import ChosenToken


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeChoice:
    """One choice."""

    text: str
    tokens: list[ChosenToken]  # whoever writes them takes them out: a hundred thousand are not let go at once
    finish_reason: FinishReason


async def whole_choices(request: Request, choices: Choices, count: int) -> list[WholeChoice]:
    """All choices, in order. Those of a client that leaves are cancelled, and ClientLeftError is raised."""
    try:
        return await while_connected(request.receive, _collected(choices, count))
    finally:
        choices.cancel()


async def _collected(choices: Choices, count: int) -> list[WholeChoice]:
    texts: list[list[str]] = [[] for _ in range(count)]
    tokens: list[list[ChosenToken]] = [[] for _ in range(count)]
    reasons: dict[int, FinishReason] = {}
    async for index, event in choices.events():
        if isinstance(event, Finished):
            reasons[index] = finish_reason(event)
        else:
            texts[index].append(event.text)
            tokens[index].extend(event.tokens)
    return [WholeChoice(text="".join(texts[i]), tokens=tokens[i], finish_reason=reasons[i]) for i in range(count)]
