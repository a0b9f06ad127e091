"""Whether a template says what a chat of somebody's data says: what it leaves out is refused by name, or told."""

from __future__ import annotations

import re
from collections.abc import Callable

from fedlora.data.chat_trace import ChatTrace
from fedlora.data.examples import ASSISTANT, REASONING, SAID, Chat
from fedlora.errors import DataError
from fedlora.nearest import hint

# What says whether a message is learned. Whoever reads a record takes them out of the fields.
WEIGHT, TRAIN = "weight", "train"
_KNOWN = ("role", *SAID, "name", "tool_call_id", WEIGHT, TRAIN)
# Words of other names for the same (`loss_mask`, `train_detail`, `is_trainable`), which nobody here reads.
_CHOOSING = frozenset(
    {
        "loss",
        "mask",
        "masked",
        "learn",
        "learned",
        "learnable",
        "train",
        "trained",
        "trainable",
        "training",
        "supervised",
    }
)
_THOUGHTS = "thoughts in content"


def unheard_fields(
    trace: ChatTrace, chat: Chat, mentions: Callable[[str], bool], where: str, place: str
) -> tuple[str, ...]:
    """The names of fields that change nothing in the text, though they may: a template has no word for a time or a number.

    Raises DataError for a message of which nothing is in the text, for thoughts and calls that the template does not know,
    and for a field that is meant to choose what is learned, or is like one that would have been heard.
    """
    if (index := trace.silent_message()) is not None:
        role = chat.messages[index].role
        raise DataError(
            f"{where}: message {index + 1}: {place} writes nothing of a message of the role {role!r:.70} in this place; "
            "remove the message or its record"
        )
    unheard = []
    for name in dict.fromkeys(name for message in chat.messages for name in message.given()):
        if name == "role" or (index := trace.silent_field(name)) is None:
            continue
        if not mentions(name) and (reason := _refusal(name, chat, index)):
            raise DataError(f"{where}: message {index + 1}: {name:.70}: {place} does not know this field; {reason}")
        unheard.append(name)
    if silent := trace.silent_thoughts():
        index = silent[-1]
        if chat.messages[index].is_learned and not any(m.role == ASSISTANT for m in chat.messages[index + 1 :]):
            raise DataError(
                f"{where}: message {index + 1}: content: {place} leaves out what is thought before the answer, even in the "
                "last one, so it would not be learned; take the thoughts out, or give prompt and completion instead"
            )
        unheard.append(_THOUGHTS)
    return tuple(unheard)


def _chooses(name: str) -> bool:
    return not _CHOOSING.isdisjoint(re.findall(r"[a-z]+", name.lower()))


def _refusal(name: str, chat: Chat, index: int) -> str:
    """Why a field that the template does not mention is not merely left out; empty where it is."""
    if name in ("tool_calls", "function_call"):
        return "what is called would not be learned: write it into content, or pack a model whose template calls tools"
    if name in REASONING:
        return "what is thought would not be learned: write it into content, or remove it"
    if name in _KNOWN:
        return ""
    value = chat.messages[index].fields[name]
    if _chooses(name) or (isinstance(value, bool) and chat.messages[index].role == ASSISTANT):
        return f"{WEIGHT} (0 or 1) or {TRAIN} (true or false) says whether a message is learned; remove it otherwise"
    near = hint(name, _KNOWN, "", likeness=0.8)
    return f"{near} Rename it or remove it" if near else ""
