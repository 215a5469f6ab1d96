"""The errors that reach users."""

from __future__ import annotations

from typing import Any


class VLLMValidationError(ValueError):
    """A request or argument that cannot be served, and which of its fields is at fault.

    `str()` ends in "(parameter=..., value=...)"; an echoed value is cut to a bounded length.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.value = value

    def __str__(self) -> str:
        extras = []
        if self.parameter is not None:
            extras.append(f"parameter={self.parameter}")
        if self.value is not None:
            shown = repr(self.value)
            extras.append(f"value={shown if len(shown) <= 100 else shown[:97] + '...'}")
        return f"{self.message} ({', '.join(extras)})" if extras else self.message


class QueueFullError(Exception):
    """The server's queue is at its limit; the client may try again later (HTTP 503)."""


class EngineDeadError(Exception):
    """The engine ended unexpectedly; nothing further can be served (HTTP 503 on `/health`)."""

    def __init__(self, message: str = "The engine has ended; see the log for the cause.") -> None:
        super().__init__(message)
