"""The kinds of values that bodies hold: text that is Unicode, whole numbers, and what is refused rather than ignored.

A field that is declared as `NotSupported` is refused by name where a request sets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from fedlora.data.examples import strings_in
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from fedlora_serve.http.protocol.other_fields import EMPTY, is_one_of

DIGEST_HEADER = "X-Adapter-Digest"
# Of an adapter that is a signed release: NAME VERSION, and the id of the key.
RELEASE_HEADER, SIGNER_HEADER = "X-Adapter-Release", "X-Adapter-Signer"
ADAPTERS_HEADER = "X-Adapters"  # of several that answer together: NAME=WEIGHT DIGEST, ...

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1024
MAX_BIASES = MAX_STOP_TOKENS = 1024
# Before anything is done with them; a service's limits are lower.
MAX_TEXTS, MAX_TOKENS = 2048, 1 << 20
ALL_THAT_FIT = -1  # as llama.cpp's clients ask for it
_PIECE = 1 << 14  # token ids
_NO_TOKENS = "expected token ids, at least one, none below 0"


class Body(BaseModel):
    """What a client sends. Types are taken as they are: "5" is no number, and true is not 1."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


def unicode_text(text: str) -> str:
    """The text itself. Raises ValueError where half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which is no text") from None
    return text


def json_value(value: object) -> None:
    """Raises ValueError where a string anywhere in a JSON value is no text."""
    for text in strings_in(value):
        unicode_text(text)


def _not_set(value: object) -> None:
    """Clients send empty values for what they do not use."""
    if not is_one_of(value, EMPTY):
        raise ValueError("this service does not support it; leave it out")


def _not_used(value: object) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise ValueError("expected an object")
    return None


def _whole(value: object) -> object:
    """5.0 is a whole number to JSON Schema, and to JavaScript."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _length(value: int) -> int:
    if value < 1 and value != ALL_THAT_FIT:
        raise ValueError(f"expected 1 or more tokens, or {ALL_THAT_FIT} for as many as there is room for, got {value}")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _stops(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return ()
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected a string or at most {MAX_STOPS} of them")
    if not all(0 < len(text) <= MAX_STOP_CHARACTERS for text in texts):
        raise ValueError(f"expected strings of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(unicode_text(text) for text in texts)


def _biases(value: object) -> dict[int, float]:
    """{token: bias} of JSON's {"token": bias}."""
    if value in (None, []):  # as some languages write an object without fields
        return {}
    given: dict[str, Any] = value if isinstance(value, dict) else {"": value}
    if len(given) > MAX_BIASES or not all(token.isascii() and token.isdigit() and len(token) < 10 for token in given):
        raise ValueError(f"expected at most {MAX_BIASES} token ids, as strings, each with its bias")
    for bias in given.values():
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError("expected biases from -100 to 100")
    return {int(token): float(bias) for token, bias in given.items()}


def token_ids(value: Sequence[Any]) -> tuple[int, ...]:
    """Token ids as they come in JSON. Raises ValueError."""
    if len(value) > MAX_TOKENS:
        raise ValueError(f"expected at most {MAX_TOKENS} token ids, got {len(value)}")
    tokens: list[int] = []
    for begin in range(0, len(value), _PIECE):  # in C, and between two pieces others have their turn
        piece = value[begin : begin + _PIECE]
        if set(map(type, piece)) != {int}:
            piece = [_whole(token) for token in piece]
        if set(map(type, piece)) != {int} or min(piece) < 0 or max(piece) >= 1 << 31:
            raise ValueError(_NO_TOKENS)
        tokens.extend(piece)
    if not tokens:
        raise ValueError(_NO_TOKENS)
    return tuple(tokens)


def _stop_tokens(value: object) -> tuple[int, ...]:
    if value in (None, []):
        return ()
    if not isinstance(value, list) or len(value) > MAX_STOP_TOKENS:
        raise ValueError(f"expected a list of at most {MAX_STOP_TOKENS} token ids")
    return token_ids(value)


def texts_or_tokens(value: object) -> tuple[str | tuple[int, ...], ...]:
    """Each text or list of token ids of a value that is one of them or a list of them. Raises ValueError."""
    given: list[Any] = value if isinstance(value, list) else [value]
    if len(given) > MAX_TEXTS and not isinstance(given[0], int | float):
        raise ValueError(f"expected at most {MAX_TEXTS} of them in one request, got {len(given)}")
    if isinstance(value, list) and value and isinstance(value[0], int | float) and not isinstance(value[0], bool):
        return (token_ids(value),)
    if given and all(isinstance(one, str) for one in given):
        return tuple(unicode_text(text) for text in given)
    if given and all(isinstance(one, list) for one in given):
        return tuple(token_ids(tokens) for tokens in given)
    raise ValueError("expected a string, token ids, or a list of strings or of lists of token ids, and at least one")


def _list_schema(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_TOKENS_SCHEMA = _list_schema({"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1})
_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}

Text = Annotated[str, AfterValidator(unicode_text)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1)]
Length = Annotated[  # of an answer, in tokens
    Whole,
    AfterValidator(_length),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": ALL_THAT_FIT}]}),
]
TopCount = Annotated[Whole, Field(ge=0, le=20)]  # of likeliest tokens
TopCountOrNone = Annotated[
    TopCount | None,
    BeforeValidator(lambda value: None if value is False else value),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 20}, {"const": False}, {"type": "null"}]}),
]
NotUsedText = Annotated[Text | None, Field(description="Taken and not used.")]
NotUsedObject = Annotated[
    dict[str, Any] | None,
    PlainValidator(_not_used),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "null"}], "description": "Taken and not used."}),
]
Number = Annotated[float, AfterValidator(_finite)]
ModelName = Annotated[Text, Field(min_length=1, max_length=256, description="The base's name or an adapter's.")]
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema(
        {"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MAX_STOPS}, {"type": "null"}]}
    ),
]
Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "type": ["object", "array", "null"],
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASES,
            "maxItems": 0,
        }
    ),
]
StopTokens = Annotated[
    tuple[int, ...],
    PlainValidator(_stop_tokens),
    WithJsonSchema({"anyOf": [{**_TOKENS_SCHEMA, "minItems": 0, "maxItems": MAX_STOP_TOKENS}, {"type": "null"}]}),
]
TextsOrTokens = Annotated[
    tuple[str | tuple[int, ...], ...],
    PlainValidator(texts_or_tokens),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _list_schema({"type": "string"}),
                _TOKENS_SCHEMA,
                _list_schema(_TOKENS_SCHEMA),
            ]
        }
    ),
]
NotSupported = Annotated[
    None,
    BeforeValidator(_not_set),
    WithJsonSchema({"enum": list(EMPTY), "description": "Not supported: leave it out."}),
]
