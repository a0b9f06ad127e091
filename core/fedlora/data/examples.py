"""What one training example is: plain text, a document, a prompt with its completion, a chat, a text with its label, or a
question with several answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import DataError

ASSISTANT = "assistant"  # the role whose messages are learned
SYSTEM, DEVELOPER = "system", "developer"
MOST_CHOICES = 100
# Names under which the datasets and services of this world give what a model thought before it answered.
REASONING = ("reasoning_content", "thinking", "reasoning")
SAID = ("content", "tool_calls", "function_call", *REASONING)  # what a message says, in any of its ways

Part = Mapping[str, Any]  # of a content: {"type": "text", "text": "..."}


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A whole document: that it ends is learned too."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError("text is empty; remove the record or give it text")


@dataclass(frozen=True, slots=True)
class Completion:
    """What is learned is the completion, after its prompt."""

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        if not self.completion:
            raise DataError("completion is empty, so there is nothing to learn; remove the record or complete it")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """What one role says: `system`, `user`, `assistant`, or another that the base's chat template knows.

    A content is text, parts of text, or None where the message says nothing in words. `fields` are all others that a
    message may have (`name`, `tool_calls`, `tool_call_id`, `reasoning_content`, ...), as they came.
    """

    role: str
    content: str | Sequence[Part] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    is_learned: bool = True  # an assistant's message; no other is

    @property
    def text(self) -> str:
        """Its content alone; parts are lines."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(str(part["text"]) for part in self.content)

    @property
    def says_something(self) -> bool:
        return bool(self.text) or any(self.fields.get(name) for name in SAID)

    def given(self) -> dict[str, Any]:
        """The message as a template gets it. A field that is null is as one that is not there: templates ask for both."""
        given = {"role": self.role, "content": self.content, **self.fields}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Chat:
    """What is learned are the assistant's messages, each after those before it."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] | None = field(default=None, hash=False)  # what the assistant may call
    documents: tuple[Mapping[str, Any], ...] | None = field(default=None, hash=False)
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)  # more that the template is given

    def __post_init__(self) -> None:
        answers = [message for message in self.messages if message.role == ASSISTANT and message.says_something]
        if not answers:
            roles = ", ".join(dict.fromkeys(message.role for message in self.messages)) or "none"
            raise DataError(
                f"no message of the role {ASSISTANT!r} with content, so there is nothing to learn (roles: {roles}); "
                "remove the record or add the answer"
            )
        if not any(message.is_learned for message in answers):
            raise DataError(
                f"every message of the role {ASSISTANT!r} has weight 0 or train false, so there is nothing to learn; "
                "remove the record"
            )


@dataclass(frozen=True, slots=True)
class Labelled:
    """What an encoder learns is the label: one of the base's, by its name or by its number. A decoder leaves it."""

    text: str
    label: object  # as it was given: whoever learns it knows which labels there are
    has_pair: bool = False  # whether the label is one of two texts together

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError("text is empty; remove the record or give it text")


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A question and several answers, one of them right: what a decoder learns is that one, after the prompt."""

    prompt: str
    choices: tuple[str, ...]
    answer: int  # the number of the right one, from 0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise DataError("prompt is empty; remove the record or give it a question")
        if not 2 <= len(self.choices) <= MOST_CHOICES or not all(choice.strip() for choice in self.choices):
            raise DataError(
                f"choices must be from 2 to {MOST_CHOICES} texts, none of them empty, got {len(self.choices)} "
                f"({', '.join(self.choices):.60})"
            )
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"answer must be one of {len(self.choices)} choices, counted from 0, got {self.answer}")

    @property
    def completion(self) -> Completion:
        """The question with its right answer."""
        return Completion(self.prompt, f" {self.choices[self.answer]}")


# A str is plain text, perhaps a part of a document: neither its beginning nor its end need be one.
Example = str | TextRecord | Completion | Chat | Labelled | MultipleChoice


def text_of(example: Example) -> str:
    """All that an example says, without what a template adds."""
    match example:
        case str():
            return example
        case TextRecord() | Labelled():
            return example.text
        case Completion():
            return example.prompt + example.completion
        case Chat():
            return "".join(map(_all_text, example.messages))
        case MultipleChoice():
            return text_of(example.completion)


def size_bytes(example: Example) -> int:
    """The length of an example's text in UTF-8."""
    return len(text_of(example).encode())


def _all_text(message: ChatMessage) -> str:
    return message.text + "".join(strings_in([message.fields.get(name) for name in SAID]))


def strings_in(value: object) -> Iterator[str]:
    """All strings in a JSON value, those that name its fields too, however deep it is."""
    left = [value]
    while left:
        match left.pop():
            case str() as text:
                yield text
            case Mapping() as given:
                left += reversed([one for pair in given.items() for one in pair])
            case Sequence() as several:
                left += reversed(several)
