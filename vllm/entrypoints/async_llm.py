"""`AsyncLLMEngine`: the asynchronous engine for programs of one's own."""

from __future__ import annotations

from vllm.config import EngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.engine_process import start_engine


class AsyncLLMEngine(AsyncLLM):
    """`async for output in engine.generate(prompt, params, request_id)`; see `AsyncLLM`."""

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> AsyncLLMEngine:
        """Starts the core's process. Raises ValueError for arguments that cannot work."""
        return start_engine(args, cls=cls)
