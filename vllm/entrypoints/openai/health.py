"""GET /health, GET and POST /ping, GET /version, GET /load, GET /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from vllm.core.errors import EngineDeadError
from vllm.entrypoints.openai.state import server_of
from vllm.version import __version__

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine lives, else 503."""
    try:
        await server_of(request).engine.check_health()
    except EngineDeadError:
        return Response(status_code=503)
    return Response(status_code=200)


@router.get("/ping", operation_id="ping")
@router.post("/ping", operation_id="ping_by_post")
async def ping(request: Request) -> Response:
    """As /health, under the name that some platforms ask for."""
    return await health(request)


@router.get("/version")
async def show_version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/load")
async def load(request: Request) -> dict[str, int]:
    """Requests being answered; 0 without --enable-server-load-tracking, as vLLM has it."""
    server = server_of(request)
    tracked = server.args.enable_server_load_tracking
    return {"server_load": len(server.running) if tracked else 0}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The engine's metrics, when it keeps any, and those of this process."""
    server = server_of(request)
    kept = server.metrics
    text = generate_latest(kept.registry) if kept is not None else b""
    return Response(text + generate_latest(server.process_metrics), media_type=CONTENT_TYPE_LATEST)
