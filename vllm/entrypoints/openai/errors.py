"""Errors as clients see them: one envelope, a status each, never a traceback."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vllm.core.errors import EngineDeadError, QueueFullError, VLLMValidationError

logger = logging.getLogger(__name__)

MAX_MESSAGE, MAX_PARAM = 1000, 200

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """An error with its HTTP status, and the request's field at fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class ClientGone(Exception):
    """The client hung up; nobody reads the response."""


class ShuttingDown(ApiError):
    def __init__(self) -> None:
        super().__init__(503, "The server is shutting down.")


def unknown_model(name: str) -> ApiError:
    return ApiError(404, f"The model `{_cut(name, 200)}` does not exist.", param="model")


def envelope(
    status: int, message: str, *, param: str | None = None, type: str | None = None
) -> dict[str, Any]:
    """The body of an error. Text is bounded, and encodable whatever the client sent."""
    type = type or _TYPES.get(status) or HTTPStatus(status).phrase
    param = None if param is None else _cut(param, MAX_PARAM)
    message = _cut(message, MAX_MESSAGE)
    return {"error": {"message": message, "type": type, "param": param, "code": status}}


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body for any error. One that is nobody's fault but ours is logged here."""
    match error:
        case ApiError():
            return error.status, envelope(error.status, error.message, param=error.param)
        case VLLMValidationError():
            return 400, envelope(400, str(error), param=error.parameter)
        case RequestValidationError():
            message, param = _explain(error)
            return 400, envelope(400, message, param=param)
        case HTTPException():
            status = error.status_code
            phrase = HTTPStatus(status).phrase
            return status, envelope(status, str(error.detail), type=phrase)
        case QueueFullError() | EngineDeadError():
            return 503, envelope(503, str(error))
        case _:
            logger.error("Unexpected error while answering a request", exc_info=error)
            return 500, envelope(500, "Internal server error; see the server's log.")


def error_response(error: BaseException) -> Response:
    status, body = describe(error)
    headers = getattr(error, "headers", None)
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Answer every error of the app's with the envelope."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    for kind in (
        ApiError,
        VLLMValidationError,
        RequestValidationError,
        HTTPException,
        QueueFullError,
        EngineDeadError,
        Exception,
    ):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientGone, gone)


def _explain(error: RequestValidationError) -> tuple[str, str | None]:
    """The first field at fault, as a dotted path, and all that is said about it.

    A value that fits no member of a union gives an error for each; they are one to the client.
    """
    said: dict[str, list[str]] = {}
    for item in error.errors():
        if item["type"] == "json_invalid":
            reason = item.get("ctx", {}).get("error", "")
            return f"The body cannot be read as JSON: {reason}", None
        param = _path(item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if not param and item["type"] in ("model_attributes_type", "missing"):
            message = "The body must be a JSON object, sent as application/json"
        messages = said.setdefault(param, [])
        if message not in messages:
            messages.append(message)
    first = next(iter(said))
    # Members of one union may fail at different depths; the shortest path is the union's own.
    param = min((p for p in said if first == p or first.startswith(p + ".")), key=len)
    within = [m for p in said if p == param or p.startswith(param + ".") for m in said[p]]
    text = "; or ".join(list(dict.fromkeys(within))[:4])
    return (f"{param}: {text}", param) if param else (text, None)


def _path(loc: tuple[int | str, ...]) -> str:
    """A pydantic location without the names of union members, which mean nothing to a client."""
    kept = [
        str(part)
        for part in loc[1:]
        if isinstance(part, int)
        or (
            part.isidentifier()
            and not part[0].isupper()
            and part not in ("str", "int", "float", "bool", "dict", "list", "none")
        )
    ]
    return ".".join(kept)


def _cut(text: str, length: int) -> str:
    text = text if len(text) <= length else text[: length - 3] + "..."
    return text.encode("utf-8", "replace").decode("utf-8")
