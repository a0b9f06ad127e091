"""The bodies of POST /v1/embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.field_types import Body, Count, ModelName, NotSupported, Text, TextsOrTokens


class EmbeddingBody(Body):
    """Texts to embed."""

    model: ModelName
    input: TextsOrTokens
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: of the vector's float32 numbers, little-endian."
    )
    dimensions: Count | None = Field(None, description="Only the size that the base has.")
    user: Text | None = Field(None, description="Taken and not used.")

    truncate_prompt_tokens: NotSupported = None


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
