"""What stands before the endpoints: limits, keys, request ids. Plain ASGI: no cost per chunk."""

from __future__ import annotations

import uuid

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.entrypoints.openai.errors import error_response
from vllm.entrypoints.openai.keys import digest, knows, unauthorized
from vllm.entrypoints.openai.state import REQUEST_ID
from vllm.observe.tracing import Tracer

MAX_BODY = 8 << 20
MAX_HEADERS, MAX_HEADER_BYTES = 100, 32 << 10

# All that a client without a key may see of a server that has one.
OPEN_PATHS = frozenset({"/health", "/ping", "/version"})


class _Guard:
    """Passes on whatever is no HTTP request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answer if scope["type"] == "http" else self.app
        await answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class Limits(_Guard):
    """Refuses bodies and headers that are too large, before they are held in memory."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        if (
            len(headers) > MAX_HEADERS
            or sum(len(k) + len(v) for k, v in headers) > MAX_HEADER_BYTES
        ):
            await error_response(HTTPException(431))(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_large = HTTPException(413, f"The body may have at most {MAX_BODY} bytes")
        if declared.isdecimal() and int(declared) > MAX_BODY:
            await error_response(too_large)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise too_large
            return message

        await self.app(scope, counted, send)


class Keys:
    """Lets in only those who show a key, but for OPEN_PATHS.

    What is not known to be open is closed, so a route added later is closed too. The path is
    compared as the router sees it. Only digests of keys are kept, and all are compared in full.
    """

    def __init__(self, app: ASGIApp, keys: list[str]) -> None:
        self.app = app
        self._digests = [digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_to_all = scope["type"] == "lifespan" or get_route_path(scope) in OPEN_PATHS
        if open_to_all or knows(scope, self._digests):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await unauthorized()(scope, receive, send)
        # A websocket that is not accepted is closed by the server.


class Traces(_Guard):
    """Has the request's spans belong to the client's, if it named one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        super().__init__(app)
        self._tracer = tracer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._tracer.within(Headers(scope=scope)):
            await self.app(scope, receive, send)


class RequestIds(_Guard):
    """Gives each response the id of its request."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        scope["vllm.request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = scope["vllm.request_id"]
            await send(message)

        await self.app(scope, receive, named)
