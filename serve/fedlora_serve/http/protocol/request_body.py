"""The body of a request: every field of it is honoured, or refused by its name. None is ignored.

A field that somebody misspelled, or that another server knows, would change what he expects of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from fedlora.nearest import hint
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fedlora_serve.http.protocol.field_types import Body
from fedlora_serve.http.protocol.other_fields import OTHER_FIELDS

_MOST = 16  # fields that are told of: to look for names like theirs takes time


class NamedFields(BaseModel):
    """What has these fields and no others; a field that says nothing may be there all the same."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_others(cls, given: Any) -> Any:
        """The fields of this body. Raises ValidationError that names the first ones that are none of it."""
        if not isinstance(given, Mapping):
            return given
        others = given.keys() - cls.model_fields.keys()
        if not others:
            return given
        refused = list(islice(cls._refused({name: given[name] for name in given if name in others}), _MOST))
        if refused:
            raise ValidationError.from_exception_data(cls.__name__, refused)
        return {name: value for name, value in given.items() if name not in others}

    @classmethod
    def _refused(cls, others: Mapping[str, object]) -> Iterator[InitErrorDetails]:
        for name, value in others.items():
            other = OTHER_FIELDS.get(name)
            if other is not None:
                problem = other.refused(value)
            elif value is None:
                problem = ""
            else:
                near = hint(name, cls.model_fields, "leave it out; GET /openapi.json lists those that it knows")
                problem = f"this service does not know it; {near}"
            if problem:
                # In a template of pydantic's a brace is a place for a value.
                error = PydanticCustomError("other_field", "{problem}", {"problem": problem})
                yield InitErrorDetails(type=error, loc=(name,), input=value)


class RequestBody(NamedFields, Body):
    """What a client sends, of whose fields none is ignored."""

    model_config = ConfigDict(extra="forbid")
