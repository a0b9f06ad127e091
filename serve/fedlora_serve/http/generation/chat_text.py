"""From a chat's fields to the text that the base's template writes of them: heard in full, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fedlora.data.chat_template import RESERVED, ChatTemplate
from fedlora.data.chat_trace import ChatTrace
from fedlora.data.examples import ChatMessage
from fedlora.nearest import hint

from fedlora_serve.http.protocol.chat import ChatBody
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.other_fields import EMPTY, OTHER_MESSAGE_FIELDS, is_one_of

_WHERE = "messages"
_MOST_VARIABLES = 64  # that the template does not know: to look for names like theirs takes time


def chat_text(template: ChatTemplate, body: ChatBody) -> str:
    """The prompt of a chat. Raises ApiError for what does not go together or is not heard, DataError, PackError."""
    begins = _begins_an_answer(body)
    _check_variables(template, body)
    messages = [message.message for message in body.messages]
    _check_message_fields(template, messages, tools=bool(body.tools))
    write = partial(template.text, where=_WHERE, add_generation_prompt=begins, variables=body.chat_template_kwargs)
    text = write(messages, tools=body.tools, documents=body.documents)
    if body.tools and text == write(messages, documents=body.documents):
        raise _unheard("tools", "tools")
    if body.documents and text == write(messages, tools=body.tools):
        raise _unheard("documents", "documents")

    def written(some: Sequence[ChatMessage]) -> str:
        return write(some, tools=body.tools, documents=body.documents)

    trace = ChatTrace(written, messages, text)
    if (index := trace.silent_message()) is not None:
        raise _unheard(f"messages.{index}", f"message of the role {messages[index].role!r:.70} in this place")
    if (index := trace.silent_field("tool_calls")) is not None:
        raise _unheard(f"messages.{index}.tool_calls", "tool_calls")
    if body.continue_final_message:
        return write(messages, tools=body.tools, documents=body.documents, continue_final_message=True)
    return text


def _begins_an_answer(body: ChatBody) -> bool:
    """Whether an answer is begun after the messages. Raises ApiError for fields that do not go together."""
    if body.tools and body.tool_choice != "none":
        raise ApiError(
            400,
            "tools: this service does not read calls out of an answer; set tool_choice to none to have the tools in the "
            "prompt and all that the model writes as content, or leave tools out",
            param="tools",
        )
    if taken := sorted(RESERVED & body.chat_template_kwargs.keys()):
        name = taken[0]
        message = f"chat_template_kwargs: {name} is no variable of a template's own; give it as a field of the request"
        raise ApiError(400, message, param=f"chat_template_kwargs.{name}")
    if not body.continue_final_message:
        return body.add_generation_prompt is not False
    if body.add_generation_prompt:
        raise ApiError(
            400,
            "continue_final_message: either the last message is continued or an answer is begun after it; leave "
            "add_generation_prompt out, or set it to false",
            param="continue_final_message",
        )
    return False


def _check_variables(template: ChatTemplate, body: ChatBody) -> None:
    """Raises ApiError for a variable that the template does not know.

    One that asks for nothing may be there all the same, unless its name is another one's, misspelled.
    """
    tools = bool(body.tools)
    unknown = [name for name in body.chat_template_kwargs if not template.mentions(name, tools=tools)]
    known = sorted(template.words(tools=tools)) if unknown else []
    for number, name in enumerate(unknown):
        near = hint(name, known, "", likeness=0.8)
        if near or number >= _MOST_VARIABLES or not is_one_of(body.chat_template_kwargs[name], EMPTY):
            message = f"chat_template_kwargs: the chat template has no variable {name!r:.70}; {near or 'leave it out'}"
            raise ApiError(400, message, param=f"chat_template_kwargs.{name:.64}")


def _check_message_fields(template: ChatTemplate, messages: Sequence[ChatMessage], *, tools: bool) -> None:
    """Raises ApiError for a field that asks for what is not done here."""
    for index, message in enumerate(messages):
        for name in message.fields.keys() & OTHER_MESSAGE_FIELDS.keys():
            if not template.mentions(name, tools=tools) and (
                problem := OTHER_MESSAGE_FIELDS[name].refused(message.fields[name])
            ):
                param = f"messages.{index}.{name}"
                raise ApiError(400, f"{param}: {problem}", param=param)


def _unheard(param: str, what: str) -> ApiError:
    message = f"{param}: the base's chat template writes no {what}: the model would not see them; leave them out"
    return ApiError(400, message, param=param)
