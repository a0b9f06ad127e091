"""The bodies of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from fedlora_serve.http.protocol.envelope import Envelope, Usage
from fedlora_serve.http.protocol.field_types import Body, Count, NotSupported, Text, TopCount, unicode_text
from fedlora_serve.http.protocol.generation_body import GenerationBody

_MAX_MESSAGES = 1 << 14


def _content(value: object) -> str:
    """The text of a message; several parts are lines, as vLLM joins them."""
    if isinstance(value, str):
        return unicode_text(value)
    if isinstance(value, list):
        return "\n".join(_part(part) for part in value)
    raise ValueError("expected a string or a list of parts of type text")


def _part(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return unicode_text(text)
        case {"type": str(kind)} if kind != "text":
            raise ValueError(f"a part of type {kind!r:.40} is not supported: this service reads text")
    raise ValueError('expected parts such as {"type": "text", "text": "..."}')


_PART_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Content = Annotated[
    str,
    PlainValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}]}),
]


class ChatMessageBody(Body):
    """What one role says."""

    role: Annotated[Text, Field(min_length=1, max_length=64, description="As the base's chat template knows it.")]
    content: Content

    audio: NotSupported = None
    function_call: NotSupported = None
    name: NotSupported = None
    tool_call_id: NotSupported = None
    tool_calls: NotSupported = None


class ChatBody(GenerationBody):
    """A chat, to which the assistant answers."""

    messages: Annotated[list[ChatMessageBody], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)]
    max_tokens: Count | None = Field(None, description="None: what the context leaves.")
    max_completion_tokens: Count | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: TopCount | None = Field(None, description="Needs logprobs.")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Taken and not used: there are no tools.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=8, fail_fast=True)] | None = None

    chat_template: NotSupported = None
    chat_template_kwargs: NotSupported = None
    continue_final_message: NotSupported = None
    function_call: NotSupported = None
    functions: NotSupported = None
    reasoning_effort: NotSupported = None
    tools: NotSupported = None


class TokenLogprob(BaseModel):
    """A token, its log-probability, and its bytes, where the tokenizer tells them."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """A token of the answer, and the likeliest ones at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """One entry for each token."""

    content: list[ChosenLogprob]
    refusal: None


class ChatAnswer(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Envelope):
    """The answers."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What is new: the role at the beginning, then text."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """The next part of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(Envelope):
    """The next part of one answer, or the usage after all of them."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
