"""What every answer begins with, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from typing import TypedDict

from pydantic import BaseModel

from fedlora_serve.http.answers.served_model import ServedModel


class Head(BaseModel):
    """One request's answers: all of their chunks have the same."""

    id: str
    created: int  # unix seconds
    model: str
    system_fingerprint: str  # of the base, and of the adapter


class HeadFields(TypedDict):
    """The fields of a head, for a constructor."""

    id: str
    created: int
    model: str
    system_fingerprint: str


def new_head(model: ServedModel, prefix: str) -> HeadFields:
    """The fields of the answers of `model`, with an id of their own."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.system_fingerprint,
    }
