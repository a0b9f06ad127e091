"""What every answer begins with, whole or in chunks."""

from __future__ import annotations

from typing import TypedDict

from pydantic import BaseModel


class Envelope(BaseModel):
    """One request's answers: all of their chunks have the same."""

    id: str
    created: int  # unix seconds
    model: str
    system_fingerprint: str  # of the base, and of the adapter


class EnvelopeFields(TypedDict):
    """The fields of an envelope, for a constructor."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(BaseModel):
    """Of the prompts' tokens."""

    cached_tokens: int  # whose keys and values were there already


class Usage(BaseModel):
    """Tokens of the prompts, each counted once however many answers it has, and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EmbeddingUsage(BaseModel):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int
