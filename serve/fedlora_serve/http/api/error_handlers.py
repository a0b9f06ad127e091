"""Whatever a request ends in, as an answer of one shape."""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fedlora.errors import FedloraError
from starlette.exceptions import HTTPException

from fedlora_serve.http.api.other_routes import no_such_route
from fedlora_serve.http.protocol.errors import ApiError, ErrorResponse, api_error
from fedlora_serve.http.service.state import service_of, without_folders
from fedlora_serve.http.transport.body_values import InvalidBodyError
from fedlora_serve.http.transport.client_connection import ClientLeftError

_CLIENT_CLOSED_REQUEST = 499  # nginx's word for it, for whoever counts
_TOO_MUCH = (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE)
_REFUSED_AFTER_S = 0.1  # who asks for more than there is, again and again without a pause, costs the others less
_MAX_PROBLEMS = 4  # of a body that are told at once


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the same shape."""
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(FedloraError, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(InvalidBodyError, _answer_invalid)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(ClientLeftError, _answer_nobody)
    app.add_exception_handler(Exception, _answer)  # and the server, which gets it after this, logs it


async def _answer(request: Request, error: Exception) -> Response:
    answer = api_error(error)
    if answer.status in _TOO_MUCH:
        await asyncio.sleep(_REFUSED_AFTER_S)
    if isinstance(error, FedloraError):
        detail = answer.body.error
        detail.message = without_folders(detail.message, service_of(request).base.directory)
    return ErrorResponse(answer)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _answer_http(request: Request, error: Exception) -> Response:
    """Routes and methods that are not there, and bodies that are no JSON."""
    answer = api_error(error)
    detail, where = answer.body.error, f"{request.method} {request.url.path}"
    if answer.status == http.HTTPStatus.NOT_FOUND and detail.message == "Not Found":
        instead = no_such_route(request.url.path, request.app.openapi()["paths"])
        detail.message, detail.code = f"{where:.300}: there is no such route; {instead}", "not_found"
    elif answer.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = answer.headers.get("Allow", "another method")
        if "GET" in allowed and "HEAD" not in allowed:  # and HEAD wherever that is
            answer.headers["Allow"] = allowed = f"{allowed}, HEAD"
        detail.message, detail.code = f"{where:.300}: use {allowed}", "method_not_allowed"
    elif answer.status == http.HTTPStatus.BAD_REQUEST and detail.message == "There was an error parsing the body":
        if encoded := _encoding_of(request):
            return ErrorResponse(encoded)
        detail.message = "the body is not JSON in UTF-8 of a sensible depth, or a number in it is too long"
    return ErrorResponse(answer)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidBodyError)
    return await _answer_validation(request, RequestValidationError(error.problems))


async def _answer_validation(request: Request, error: Exception) -> Response:
    """400 that names the first fields that are wrong; `param` is the first one's path."""
    assert isinstance(error, RequestValidationError)
    problems: Sequence[Mapping[str, Any]] = error.errors()
    first = problems[0]
    if encoded := _encoding_of(request):
        return ErrorResponse(encoded)
    if first["type"] == "json_invalid":
        at = first["loc"][-1]
        return ErrorResponse(ApiError(400, f"the body is not JSON: {first['ctx']['error']}, at character {at}"))
    if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        return ErrorResponse(ApiError(415, "expected a JSON object; send it with Content-Type: application/json"))
    told = "; ".join(_sentence(problem) for problem in problems[:_MAX_PROBLEMS])
    more = len(problems) - _MAX_PROBLEMS
    message = f"{told}; and {more} more" if more > 0 else told
    return ErrorResponse(ApiError(400, message, param=_path(first) or None))


def _encoding_of(request: Request) -> ApiError | None:
    """415 for a body that is compressed: it is read as it comes."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() in ("identity", ""):
        return None
    return ApiError(415, f"the body is compressed (Content-Encoding: {encoding:.40}); send it uncompressed")


def _sentence(problem: Mapping[str, Any]) -> str:
    message = _in_our_words(problem) or str(problem["msg"]).removeprefix("Value error, ")
    return f"{_path(problem) or 'the body'}: {message[:1].lower()}{message[1:]}"


_EXPECTED = {
    "missing": "it is needed",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected a string",
    "list_type": "expected a list",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "greater_than_equal": "expected at least {ge}",
    "greater_than": "expected more than {gt}",
    "less_than_equal": "expected at most {le}",
    "less_than": "expected less than {lt}",
    "string_too_short": "expected at least {min_length} characters",
    "string_too_long": "expected at most {max_length} characters",
    "too_short": "expected at least {min_length}, got {actual_length}",
    "too_long": "expected at most {max_length}",
    "literal_error": "expected {expected}",
}
_SHOWN = (int, float, bool, str)  # values that are shown, where they are short


def _in_our_words(problem: Mapping[str, Any]) -> str:
    """What is wrong, where it is one of pydantic's own checks; else empty."""
    expected = _EXPECTED.get(problem["type"])
    if expected is None:
        return ""
    told, value = expected.format(**problem.get("ctx", {})), problem.get("input")
    if problem["type"] == "missing" or ", got" in told or not isinstance(value, _SHOWN) or len(str(value)) > 40:
        return told
    return f"{told}, got {json.dumps(value)}"


def _path(problem: Mapping[str, Any]) -> str:
    """messages.0.content of ("body", "messages", 0, "content"), as far as it is not too long to read."""
    return ".".join(str(part)[:64] for part in problem["loc"][1:])
