"""What one training example is: plain text, a document, a prompt with its completion, a chat, or a text with its label."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.errors import DataError

ASSISTANT = "assistant"  # the role whose messages are learned


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
    """What one role says: `system`, `user`, `assistant`, or another that the base's chat template knows."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """What is learned are the assistant's messages, each after those before it."""

    messages: tuple[ChatMessage, ...]

    def __post_init__(self) -> None:
        if not any(message.role == ASSISTANT and message.content for message in self.messages):
            roles = ", ".join(dict.fromkeys(message.role for message in self.messages)) or "none"
            raise DataError(
                f"no message of the role {ASSISTANT!r} with content, so there is nothing to learn (roles: {roles}); "
                "remove the record or add the answer"
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


# A str is plain text, perhaps a part of a document: neither its beginning nor its end need be one.
Example = str | TextRecord | Completion | Chat | Labelled


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
            return "".join(message.content for message in example.messages)


def size_bytes(example: Example) -> int:
    """The length of an example's text in UTF-8."""
    return len(text_of(example).encode())
