"""What a request cost, in tokens."""

from __future__ import annotations

from pydantic import BaseModel


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
