"""What an administrator may do to a running server: caches, sleep, profiles, calls to workers.

These routes exist with `--admin-api-key`, whose keys alone open them, or with
VLLM_SERVER_DEV_MODE=1, where the ordinary keys do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import platform
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.body import JsonRoute
from vllm.entrypoints.openai.errors import ApiError
from vllm.entrypoints.openai.keys import Unauthorized, knows
from vllm.entrypoints.openai.protocol import Body
from vllm.entrypoints.openai.state import server_of
from vllm.version import __version__


async def administrator(request: Request) -> None:
    """Raises Unauthorized for a client without an admin key, where there are any."""
    digests = server_of(request).admin_digests
    if digests and not knows(request.scope, digests):
        raise Unauthorized


router = APIRouter(route_class=JsonRoute, dependencies=[Depends(administrator)])


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(
    request: Request,
    reset_running_requests: bool = False,
    reset_external: bool = False,
) -> dict[str, bool]:
    """Forget cached KVs: the device's, and with `reset_external` those of slower tiers.

    Not, and success is false, while requests hold some; with `reset_running_requests` they compute
    them again.
    """
    engine = server_of(request).engine
    return {"success": await engine.reset_prefix_cache(reset_running_requests, reset_external)}


@router.post("/sleep")
async def sleep(
    request: Request,
    level: Annotated[int, Query(ge=0, le=2)] = 1,
    mode: Literal["abort", "wait", "keep"] = "abort",
) -> Response:
    """Give memory back until /wake_up; `mode` says what becomes of requests under way."""
    server = server_of(request)
    await server.engine.sleep(level, mode)
    if server.metrics is not None:
        server.metrics.slept(level)
    return Response(status_code=200)


@router.post("/wake_up")
async def wake_up(request: Request, tags: Annotated[list[str] | None, Query()] = None) -> Response:
    """Wake everything, or what the tags name: weights, kv_cache, scheduling."""
    server = server_of(request)
    if await server.engine.wake_up(tags) and server.metrics is not None:
        server.metrics.slept(None)
    return Response(status_code=200)


@router.get("/is_sleeping")
async def is_sleeping(request: Request) -> dict[str, bool]:
    return {"is_sleeping": await server_of(request).engine.is_sleeping()}


@router.post("/start_profile")
async def start_profile(request: Request) -> dict[str, str]:
    """Record the steps that follow with torch's profiler, in the folder that is answered."""
    return {"folder": await server_of(request).engine.start_profile()}


@router.post("/stop_profile")
async def stop_profile(request: Request) -> dict[str, str]:
    """Write what was recorded, as JSON that Perfetto shows, to the file that is answered."""
    return {"file": await server_of(request).engine.stop_profile()}


class RpcBody(Body):
    method: Annotated[str, Field(min_length=1, max_length=128)]
    args: list[Any] = Field(default_factory=list, max_length=64)
    kwargs: dict[str, Any] = Field(default_factory=dict, max_length=64)
    timeout: Annotated[float, Field(gt=0, le=3600)] | None = None


@router.post("/collective_rpc")
async def collective_rpc(body: RpcBody, request: Request) -> dict[str, list[Any]]:
    """Call one of the workers' methods on every rank."""
    engine = server_of(request).engine
    try:
        called = engine.collective_rpc(body.method, body.timeout, tuple(body.args), body.kwargs)
        return {"results": await called}
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise ApiError(504, f"{body.method} did not answer in time", param="timeout") from error
    except OverflowError as error:  # what no message to the core can hold
        raise VLLMValidationError(str(error), parameter="args") from error


@router.get("/server_info")
async def server_info(
    request: Request, config_format: Literal["text", "json"] = "text"
) -> dict[str, Any]:
    """Version, configuration and system. Keys are no part of it."""
    config = _plain(dataclasses.asdict(server_of(request).engine.config))
    return {
        "version": __version__,
        "vllm_config": config if config_format == "json" else str(config),
        "vllm_env": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("VLLM_") and "KEY" not in name
        },
        "system_env": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):  # a URL may have a password in it
        return re.sub(r"(://)[^/@]*@", r"\1", value)
    return value
