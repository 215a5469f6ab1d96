"""Keys that clients show: only digests of them are kept."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Scope


class Unauthorized(Exception):
    """The client showed no key that opens this."""


def unauthorized() -> JSONResponse:
    return JSONResponse({"error": "Unauthorized"}, 401, headers={"WWW-Authenticate": "Bearer"})


def knows(scope: Scope, digests: list[bytes]) -> bool:
    """Whether the client shows a key with one of these digests; all are compared in full."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if not scheme:  # Anthropic's clients
        scheme, token = "bearer", headers.get("x-api-key", "")
    shown = digest(token.strip())
    matches = [hmac.compare_digest(shown, known) for known in digests]
    return any(matches) and scheme.lower() == "bearer"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
