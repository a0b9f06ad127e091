"""The bodies of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fedlora.data.examples import ASSISTANT, ChatMessage, Part
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from fedlora_serve.http.protocol.envelope import Envelope, Usage
from fedlora_serve.http.protocol.field_types import (
    Body,
    Length,
    NotSupported,
    Text,
    TopCount,
    json_value,
    unicode_text,
)
from fedlora_serve.http.protocol.generation_body import GenerationBody

_MAX_MESSAGES = 1 << 14


def _content(value: object) -> Content:
    """Text, or parts of text."""
    if value is None:
        return None
    if isinstance(value, str):
        return unicode_text(value)
    if isinstance(value, list):
        return [_part(part) for part in value]
    raise ValueError("expected a string or a list of parts of type text")


def _part(part: Any) -> Part:
    match part:
        case {"type": "text", "text": str()}:
            json_value(part)
            return dict(part)
        case {"type": str(kind)} if kind != "text":
            raise ValueError(f"a part of type {kind!r:.40} is not supported: this service reads text")
    raise ValueError('expected parts such as {"type": "text", "text": "..."}')


def _objects(value: object) -> list[dict[str, Any]] | None:
    """Objects, as they came; None where there are none."""
    if value is None or value in _NOTHING:
        return None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("expected a list of objects")
    json_value(value)
    return value


def _object(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("expected an object")  # noqa: TRY004  (as pydantic has it)
    json_value(value)
    return value


Content = str | list[Part] | None
_NOTHING: list[Any] = [[], {}, "", False]  # which clients send for what they do not use
_PART_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_Content = Annotated[
    Content,
    PlainValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}, {"type": "null"}]}),
]
_Objects = Annotated[
    list[dict[str, Any]] | None,
    PlainValidator(_objects),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "null"}]}),
]
_Object = Annotated[
    dict[str, Any], PlainValidator(_object), WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "null"}]})
]


class ChatMessageBody(Body):
    """What one role says. Fields that are not told here are handed to the base's chat template as they came."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[Text, Field(min_length=1, max_length=64, description="As the base's chat template knows it.")]
    content: _Content = Field(
        None, validate_default=True, description="Null or absent in a message of the assistant alone."
    )
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: _Objects = Field(None, description="In a message of the assistant: handed to the template.")
    reasoning_content: Text | None = None

    audio: NotSupported = None
    function_call: NotSupported = None

    @field_validator("content")
    @classmethod
    def _is_there(cls, content: Content, info: ValidationInfo) -> Content:
        if content is None and info.data.get("role", ASSISTANT) != ASSISTANT:
            raise ValueError("expected a string or a list of parts of type text: the assistant alone may say nothing")
        return content

    @model_validator(mode="after")
    def _more_is_text(self) -> ChatMessageBody:
        json_value(self.model_extra or {})
        return self

    @property
    def message(self) -> ChatMessage:
        """The message, with every field that was given."""
        given = self.model_dump(
            exclude_unset=True, exclude_none=True, exclude={"role", "content", "audio", "function_call"}
        )
        return ChatMessage(self.role, self.content, given)


class ChatBody(GenerationBody):
    """A chat, to which the assistant answers."""

    messages: Annotated[list[ChatMessageBody], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)]
    max_tokens: Length | None = Field(None, description="None and -1: what the context leaves.")
    max_completion_tokens: Length | None = Field(None, description="The newer name of max_tokens.")
    add_special_tokens: bool | None = Field(False, description="Begin the chat as a text begins; a template does, too.")
    logprobs: bool | None = False
    top_logprobs: TopCount | None = Field(None, description="Needs logprobs.")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Taken and not used: there are no tools.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=8, fail_fast=True)] | None = None

    add_generation_prompt: bool | None = Field(
        None, description="Begin an answer after the messages: unless the last message is continued."
    )
    continue_final_message: bool | None = Field(False, description="Go on with the last message, of whatever role.")
    chat_template_kwargs: _Object = Field(
        default_factory=dict, description="Variables of the base's chat template, such as enable_thinking."
    )
    documents: _Objects = Field(None, description="Handed to the base's chat template.")
    tools: _Objects = Field(
        None, description="With tool_choice none: written into the prompt. Calls are not read out of an answer."
    )


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
