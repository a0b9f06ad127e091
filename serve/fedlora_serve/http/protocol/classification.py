"""The bodies of POST /v1/classify, as vLLM has them (https://docs.vllm.ai, classification API)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fedlora_serve.http.protocol.adapter_shares import AdapterShares
from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.field_types import ModelName, NotUsedText, TextsOrTokens
from fedlora_serve.http.protocol.request_body import RequestBody


class ClassificationBody(RequestBody):
    """Texts to tell the labels of."""

    model: ModelName
    adapters: AdapterShares = None
    input: TextsOrTokens
    user: NotUsedText = None


class Classification(BaseModel):
    """The label of one text."""

    index: int
    label: str = Field(description="The most probable one.")
    probs: list[float] = Field(description="Of every label, in the order of `labels`.")
    num_classes: int


class Classifications(BaseModel):
    """The labels, in the order of the texts."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    labels: list[str] = Field(description="All that there are: the base's, or those of the adapter's own head.")
    data: list[Classification]
    usage: EmbeddingUsage
