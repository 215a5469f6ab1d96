"""JSON bodies, read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

# For clients that cannot add fields to their bodies; a field that is there wins.
HEADERS = {"x-workload": "workload", "x-prefix-mode": "prefix_mode", "x-session-id": "session_id"}


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            return msgspec.json.decode(await self.body())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from error


class _HintedRequest(_JsonRequest):
    async def json(self) -> Any:
        body = await super().json()
        if isinstance(body, dict):
            for header, field in HEADERS.items():
                if header in self.headers:
                    body.setdefault(field, self.headers[header])
        return body


class JsonRoute(APIRoute):
    """Decodes strictly: NaN and half surrogate pairs, which nothing behind can hold, are errors."""

    reader: type[Request] = _JsonRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(self.reader(request.scope, request.receive))

        return strictly


class HintedRoute(JsonRoute):
    """Takes what the cache may know of a request from its headers too."""

    reader = _HintedRequest
