"""Responses that are kept, for those who ask for them again or go on from them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request

from vllm.entrypoints.openai.errors import ApiError

MAX_STORED = 1024
MAX_STORED_BYTES = 64 << 20


@dataclass(slots=True)
class Stored:
    """A response and the conversation that it ended."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    size: int = 0
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Store:
    """The newest responses, within a count and a size; what is running stays."""

    kept: OrderedDict[str, Stored] = field(default_factory=OrderedDict)
    size: int = 0

    def put(self, stored: Stored) -> None:
        id = stored.response["id"]
        self.size -= self.kept.pop(id).size if id in self.kept else 0
        stored.size = len(msgspec.json.encode([stored.response, stored.messages]))
        self.kept[id] = stored
        self.size += stored.size
        for old in list(self.kept):
            if len(self.kept) <= MAX_STORED and self.size <= MAX_STORED_BYTES:
                break
            if self.kept[old].task is None:
                self.size -= self.kept.pop(old).size

    def get(self, id: str, field: str = "response_id") -> Stored:
        """Raises the 404 for one that is not kept."""
        if id not in self.kept:
            raise ApiError(404, f"There is no response {id[:100]!r}.", param=field)
        return self.kept[id]

    @property
    def running(self) -> int:
        return sum(stored.task is not None for stored in self.kept.values())


def store_of(request: Request) -> Store:
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = Store()
    store: Store = state.responses
    return store
