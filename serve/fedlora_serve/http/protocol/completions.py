"""The bodies of POST /v1/completions."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fedlora_serve.http.protocol.envelope import Envelope, Usage
from fedlora_serve.http.protocol.field_types import Count, Length, TextsOrTokens, TopCountOrNone
from fedlora_serve.http.protocol.generation_body import GenerationBody


class CompletionBody(GenerationBody):
    """Prompts to go on from."""

    prompt: TextsOrTokens
    max_tokens: Length | None = Field(None, description="None: 16, or what the context leaves; -1: all of that.")
    best_of: Count | None = Field(None, description="Only as many as n.")
    add_special_tokens: bool | None = Field(True, description="Begin a text as the model's texts begin.")
    echo: bool | None = Field(False, description="The prompt's text before the answer; not together with logprobs.")
    logprobs: TopCountOrNone = Field(None, description="Of the chosen token and of so many likeliest ones.")


class CompletionLogprobs(BaseModel):
    """One entry for each token; offsets count the characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer, or the next part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(Envelope):
    """The answers, or the next part of one."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None
