"""The bodies of POST /v1/embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fedlora_serve.http.protocol.adapter_shares import AdapterShares
from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.field_types import Count, ModelName, NotUsedText, TextsOrTokens
from fedlora_serve.http.protocol.request_body import RequestBody


class EmbeddingBody(RequestBody):
    """Texts to embed."""

    model: ModelName
    adapters: AdapterShares = None
    input: TextsOrTokens
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: of the vector's float32 numbers, little-endian."
    )
    dimensions: Count | None = Field(None, description="Only the size that the base has.")
    normalize: bool | None = Field(
        None, description="Whether vectors have length 1; without it, as the base's own steps say."
    )
    use_activation: bool | None = Field(None, description="Another name of normalize.")
    user: NotUsedText = None


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
