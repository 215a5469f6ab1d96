"""POST /v1/cache/sessions/{session_id}/{verb}: what is to become of a conversation's blocks.

A session is all requests with one `session_id`; meant are the blocks of its latest turn.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from vllm.core.errors import VLLMValidationError
from vllm.core.retention import MAX_TTL
from vllm.entrypoints.openai.body import JsonRoute
from vllm.entrypoints.openai.state import server_of

router = APIRouter(route_class=JsonRoute)

Verb = Literal["pin", "demote", "prefetch", "release"]


class SessionBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ttl: Annotated[float, Field(gt=0, le=MAX_TTL)] | None = None  # seconds; of a pin
    cache_salt: Annotated[str, Field(min_length=1, max_length=128)] | None = None  # its requests'


@router.post("/v1/cache/sessions/{session_id}/{verb}")
async def session(
    session_id: Annotated[str, Path(max_length=128)],
    verb: Verb,
    request: Request,
    body: SessionBody | None = None,
) -> dict[str, str | int]:
    """pin: they go last, for so long. demote: they go first, to slower tiers. prefetch: they come
    up to the device. release: they are as all others again."""
    told = body or SessionBody()
    if told.ttl is not None and verb != "pin":
        raise VLLMValidationError("only a pin has a ttl", parameter="ttl", value=told.ttl)
    engine = server_of(request).engine
    blocks = await engine.cache_session(session_id, verb, told.ttl, told.cache_salt)
    return {"session_id": session_id, "verb": verb, "cached_blocks": blocks}
