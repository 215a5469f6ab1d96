"""vLLM's endpoints that this server does not have: each says why, rather than not to be there."""

from __future__ import annotations

from fastapi import APIRouter

from vllm.entrypoints.openai.errors import ApiError

_POOLING = "This server runs models that generate; pooling models are not implemented."
_LORA = "LoRA adapters are not implemented."
_AUDIO = "Multimodal models are not implemented."
REASONS = {
    "/v1/embeddings": _POOLING,
    "/v2/embed": _POOLING,
    "/pooling": _POOLING,
    "/classify": _POOLING,
    "/score": _POOLING,
    "/v1/score": _POOLING,
    "/rerank": _POOLING,
    "/v1/rerank": _POOLING,
    "/v2/rerank": _POOLING,
    "/v1/audio/transcriptions": _AUDIO,
    "/v1/audio/translations": _AUDIO,
    "/v1/realtime": _AUDIO,
    "/v1/load_lora_adapter": _LORA,
    "/v1/unload_lora_adapter": _LORA,
}

router = APIRouter(include_in_schema=False)


def _refuse(path: str, reason: str) -> None:
    @router.post(path)
    async def refused() -> None:
        raise ApiError(501, reason)


for _path, _reason in REASONS.items():
    _refuse(_path, _reason)
