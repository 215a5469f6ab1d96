"""`LLMEngine` with the executor that the arguments ask for."""

from __future__ import annotations

from vllm.config import EngineArgs
from vllm.engine import llm_engine
from vllm.entrypoints.executor import make_executor


class LLMEngine(llm_engine.LLMEngine):
    """Synchronous engine in the caller's process: `add_request`, `step`."""

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        """Raises ValueError for arguments that cannot work."""
        return cls(args.create_engine_config(), make_executor)
