"""Answers that are sent when all of them have ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from fedlora_serve.batching.request import Finished
from fedlora_serve.http.answers.answers import Answers
from fedlora_serve.http.transport.client_connection import while_connected
from fedlora_serve.text.sampling import ChosenToken

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswer:
    """One answer."""

    text: str
    tokens: tuple[ChosenToken, ...]
    finish_reason: FinishReason


async def whole_answers(request: Request, answers: Answers, count: int) -> list[WholeAnswer]:
    """All answers, in order. Those of a client that leaves are cancelled, and ClientLeftError is raised."""
    try:
        return await while_connected(request.receive, _collected(answers, count))
    finally:
        answers.cancel()


def finish_reason(ended: Finished) -> FinishReason:
    """Why an answer that was not cancelled ended."""
    return "length" if ended.reason == "length" else "stop"


async def _collected(answers: Answers, count: int) -> list[WholeAnswer]:
    texts: list[list[str]] = [[] for _ in range(count)]
    tokens: list[list[ChosenToken]] = [[] for _ in range(count)]
    reasons: dict[int, FinishReason] = {}
    async for index, event in answers.events():
        if isinstance(event, Finished):
            reasons[index] = finish_reason(event)
        else:
            texts[index].append(event.text)
            tokens[index].extend(event.tokens)
    return [
        WholeAnswer(text="".join(texts[i]), tokens=tuple(tokens[i]), finish_reason=reasons[i]) for i in range(count)
    ]
