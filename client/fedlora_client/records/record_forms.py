"""A record becomes an example: which of the known forms it is, and what else it says.

    {"text": "a document"}
    {"text": "a review", "label": "good"}
    {"prompt": "2 + 2 =", "completion": " 4"}                        or both as lists of messages (TRL)
    {"messages": [{"role": "user", "content": "Hello"}, ...]}
    {"conversations": [{"from": "human", "value": "Hello"}, ...]}    (ShareGPT)
    {"instruction": "Add.", "input": "2, 2", "output": "4"}          (Alpaca)
    {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}        multiple choice

A field that would change what is learned is honoured or refused by name; others are not looked at, and their names are
told. A field that is null is as one that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.config.sections import FORMS, OPTIONAL, FieldNames
from fedlora.data.examples import Completion, Example, Labelled, TextRecord
from fedlora.errors import DataError
from fedlora.nearest import hint

from fedlora_client.records.alpaca import alpaca_prompt
from fedlora_client.records.choices import multiple_choice
from fedlora_client.records.conversations import as_messages, as_tools, prompt_messages
from fedlora_client.records.json_values import kind, text_field
from fedlora_client.records.messages import chat_of

EXPECTED = "text, or prompt and completion, or messages, or conversations, or instruction and output, or choices"
_NO_FIELDS = FieldNames()
_FORMS = {  # what tells each form
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "choices": ("prompt", "choices", "answer"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "output"),
}
_KNOWN = tuple(dict.fromkeys(name for names in (*_FORMS.values(), *FORMS.values()) for name in names))
# What no form can honour, and what to do.
_REFUSED = {
    "chosen": "preferences are not learned; name the good answers data.fields.completion, and take rejected out",
    "rejected": "preferences are not learned; take it out",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "a base reads text; leave the record out"),
    **dict.fromkeys(("functions", "function_call"), "write it as tools and tool_calls"),
    "history": "write the whole conversation as messages",
    "suffix": "nothing is learned before a suffix; write prompt as the base expects it",
    "loss_mask": "what is learned is told by messages' weight; take it out",
}  # fmt: skip
_OF_CHATS = ("system", "tools", "documents", "chat_template_kwargs")
_MEANT = {*_REFUSED, *_OF_CHATS, "weight", "train", "text_pair"}


@dataclass(frozen=True, slots=True)
class Parsed:
    """One record: its example, unless it says itself that it is not to be learned; and the fields not looked at."""

    example: Example | None
    ignored: tuple[str, ...] = ()
    owner: str = ""  # whose it is, where data.fields names the field that tells


def parse_record(record: Mapping[str, Any], fields: FieldNames = _NO_FIELDS) -> Parsed:
    """The example of one record, whose fields are called as `fields` says. Raises DataError."""
    given = _renamed({name: value for name, value in record.items() if value is not None}, record, fields)
    form = _form(given, record, fields)
    names = {"text": ("text", "label", "text_pair")}.get(form, FORMS.get(form, _FORMS[form]))
    extras = {name: value for name, value in given.items() if name not in names}
    meant = {name: value for name, value in extras.items() if name in _MEANT and value not in ("", [], {})}
    for name in meant.keys() & _REFUSED.keys():
        raise DataError(f"{name} is not supported: {_REFUSED[name]}")
    if form == "completion" and str(given.get("label")).lower() in ("false", "0"):
        raise DataError("label says that the completion is a bad one; only good ones are learned: leave the record out")
    theirs = {fields.given().get(name, name) for name in names} | {fields.owner}  # that are looked at
    ignored = tuple(name for name, value in record.items() if value is not None and name not in theirs | _MEANT)
    if not _counts(meant):
        return Parsed(None, ignored)
    return Parsed(_example(form, given, meant), ignored, _owner(record, fields))


def _owner(record: Mapping[str, Any], fields: FieldNames) -> str:
    if not fields.owner:
        return ""
    owner = record.get(fields.owner)
    if type(owner) not in (str, int) or owner == "":
        got = kind(owner) if fields.owner in record else f"a record with {_listed(record)}"
        raise DataError(f"{fields.owner} (data.fields.owner) must be a text or an integer, got {got}")
    return str(owner)


def _example(form: str, given: Mapping[str, Any], meant: Mapping[str, Any]) -> Example | None:
    chat = {name: value for name, value in meant.items() if name in _OF_CHATS}
    if form in ("messages", "conversations"):
        if "tools" in chat:
            chat["tools"] = as_tools(chat["tools"], given[form])
        return chat_of(as_messages(given[form], form), **chat)
    if form == "completion" and (isinstance(given["prompt"], list) and isinstance(given["completion"], list)):
        return chat_of(prompt_messages(given["prompt"], given["completion"]), **chat)
    if chat:
        raise DataError(f"{next(iter(chat))} belongs to a chat; write the record as messages, or take it out")
    if "text_pair" in meant and form != "text":
        raise DataError("text_pair belongs to a text with a label; take it out")
    match form:
        case "text" if "label" in given:
            return Labelled(text_field(given, "text"), given["label"], has_pair="text_pair" in given)
        case "text":
            if given.get("text_pair"):
                raise DataError("text_pair is not supported without a label; join the two in text")
            return TextRecord(text_field(given, "text"))
        case "completion":
            return Completion(text_field(given, "prompt"), text_field(given, "completion"))
        case "choices":
            return multiple_choice(text_field(given, "prompt"), given["choices"], given["answer"])
        case _:
            instruction, more = text_field(given, "instruction"), text_field({"input": "", **given}, "input")
            if not text_field(given, "output"):
                raise DataError("output is empty, so there is nothing to learn; remove the record or complete it")
            return Completion(alpaca_prompt(instruction, more), given["output"])


def _renamed(given: dict[str, Any], record: Mapping[str, Any], fields: FieldNames) -> dict[str, Any]:
    """The fields by our names. A field of ours that goes by another name is not looked for under its own."""
    named = fields.given()
    if not named:
        return given
    result = dict(given)
    for name in named:
        result.pop(name, None)
    for name, theirs in named.items():
        if theirs in given:
            result.pop(theirs, None)
            result[name] = given[theirs]
        elif name not in OPTIONAL:
            near = hint(theirs, (field for field in record if field != theirs), "")
            state = "null" if theirs in record else "missing"
            raise DataError(
                f"{theirs} (data.fields.{name}) is {state}; the record has {_listed(record)}"
                + (f"; {near}" * bool(near))
            )
    return result


def _form(given: Mapping[str, Any], record: Mapping[str, Any], fields: FieldNames) -> str:
    forms = [form for form, names in _FORMS.items() if given.keys() >= set(names)]
    if fields.form in forms:
        return fields.form
    match forms:
        case [form]:
            return form
        case []:
            missing = f" (data.fields names {', '.join(fields.given())})" if fields.form else ""
            near = " ".join(_meant(given)) if not fields.form else ""
            if (refused := next((name for name in given if name in ("chosen", "rejected")), None)) is not None:
                near = f"{refused}: {_REFUSED[refused]}"
            raise DataError(
                f"expected the fields {EXPECTED}{missing}, got {_listed(record)}; rename them, or say what they are called "
                f"in data.fields (--set data.fields.prompt=question){near and '; ' + near}"
            )
        case several:
            found = " and ".join("/".join(_FORMS[form]) for form in several)
            raise DataError(
                f"expected only one of {EXPECTED}, got {found}; remove what is not to be learned, or choose with "
                f"data.fields (--set data.fields.{_FORMS[several[0]][-1]}={_FORMS[several[0]][-1]})"
            )


def _meant(given: Mapping[str, Any]) -> list[str]:
    """What a field was perhaps meant to be called."""
    unknown = [name for name in given if name not in _KNOWN]
    hints = ((name, hint(name.lower(), _KNOWN, "", likeness=0.75)) for name in unknown[:20])
    return [f"{name:.40}: {near}" for name, near in hints if near]


def _listed(record: Mapping[str, Any]) -> str:
    names = ", ".join(name if value is not None else f"{name} (null)" for name, value in record.items()) or "none"
    return f"{names:.200}"


def _counts(meant: Mapping[str, Any]) -> bool:
    """Whether the record is to be learned, by its own word. Raises DataError for half a word."""
    weight, train = meant.get("weight", 1), meant.get("train", True)
    if isinstance(weight, str):
        try:
            weight = float(weight)
        except ValueError:
            raise DataError(f"weight must be 0 or 1, got {kind(weight)}") from None
    if type(weight) not in (int, float) or weight not in (0, 1):
        raise DataError(
            f"weight must be 0 (left out) or 1, got {kind(weight)}; all records count alike: repeat one instead"
        )
    if str(train).lower() not in ("true", "false", "0", "1"):
        raise DataError(f"train must be true or false, got {kind(train)}")
    return bool(weight) and str(train).lower() in ("true", "1")


def is_known(names: Sequence[str], fields: FieldNames = _NO_FIELDS) -> bool:
    """Whether records with these fields are of a known form."""
    try:
        _form(_renamed(dict.fromkeys(names, ""), dict.fromkeys(names, ""), fields), dict.fromkeys(names, ""), fields)
    except DataError:
        return False
    return True


def is_field(name: str, fields: FieldNames = _NO_FIELDS) -> bool:
    """Whether a record's field of this name is looked at."""
    named = fields.given()
    return name in {*named.values(), fields.owner} or (name not in named and name in {*_KNOWN, *_MEANT})
