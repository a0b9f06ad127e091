"""Every error as OpenAI's interface writes it: {"error": {"message", "type", "param", "code"}}.

What a request may get wrong is 4xx with a sentence that says what to do; a full queue is 503 with Retry-After; what nobody
foresaw is 500 without a word about the inside, and the server logs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import Response
from fedlora.errors import AdapterStoreFullError, AdapterTooLargeError, FedloraError, GraphError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fedlora_serve.errors import BusyError

INVALID, SERVER = "invalid_request_error", "server_error"
_RETRY_AFTER = {"Retry-After": "1"}


class ErrorDetail(BaseModel):
    """What went wrong, and where in the body."""

    message: str
    type: str
    param: str | None  # the field's path, such as messages.0.content
    code: str | None


class ErrorBody(BaseModel):
    """What every answer is that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID,  # noqa: A002  (as the interface calls it)
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = ErrorBody(error=ErrorDetail(message=message, type=type, param=param, code=code))


class ErrorResponse(Response):
    """An error's body; what is no Unicode in it, such as half of a surrogate pair, is written as an escape."""

    media_type = "application/json"

    def __init__(self, error: ApiError) -> None:
        super().__init__(error_json(error), status_code=error.status, headers=error.headers)


def error_json(error: ApiError) -> str:
    """The body of an error, in ASCII."""
    return json.dumps(error.body.model_dump(warnings=False))


def api_error(error: Exception) -> ApiError:
    """Any error as an answer."""
    match error:
        case ApiError():
            return error
        case BusyError():
            return ApiError(503, str(error), SERVER, "busy", headers=_RETRY_AFTER)
        case AdapterTooLargeError():
            return ApiError(400, str(error), code="adapter_too_large")
        case AdapterStoreFullError():  # until a request that uses another adapter has ended
            return ApiError(503, str(error), SERVER, "adapter_memory_full", headers=_RETRY_AFTER)
        case GraphError():  # the service's own fault, whatever was asked
            return ApiError(500, str(error), SERVER)
        case FedloraError():
            return ApiError(400, str(error))
        case HTTPException():
            kind = INVALID if error.status_code < 500 else SERVER
            return ApiError(error.status_code, str(error.detail), kind, headers=error.headers)
    return ApiError(500, "something went wrong in the service; its log says what", SERVER)
