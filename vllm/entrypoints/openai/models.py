"""GET /v1/models: what is served here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from vllm.entrypoints.openai.errors import unknown_model
from vllm.entrypoints.openai.state import Server, server_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    server = server_of(request)
    return {"object": "list", "data": [_card(server, name) for name in server.model_names]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    server = server_of(request)
    if name not in server.model_names:
        raise unknown_model(name)
    return _card(server, name)


def _card(server: Server, name: str) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": server.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": "vllm",
        "root": server.engine.config.model.name,
        "parent": None,
        "max_model_len": server.engine.max_model_len,
        "permission": [permission],
    }
