"""Old door: vLLM's users import the engine's arguments from here."""

from vllm.config import AsyncEngineArgs, EngineArgs

__all__ = ["AsyncEngineArgs", "EngineArgs"]
