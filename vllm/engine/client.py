"""What the entrypoints ask of an engine that serves many at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from vllm.config import VllmConfig
from vllm.engine.tokenizer import Tokenizer
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

# Text, token ids, or {"prompt": text} / {"prompt_token_ids": ids}, with an optional "cache_salt".
Prompt = str | list[int] | dict[str, Any]


class EngineClient(Protocol):
    """An asynchronous engine, in this process or in another."""

    config: VllmConfig
    tokenizer: Tokenizer | None
    max_model_len: int

    @property
    def errored(self) -> bool:
        """Whether the engine has died."""
        ...

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """The request's outputs as they come, by `sampling_params.output_kind`.

        Validation happens at the first `anext`: VLLMValidationError for a request that cannot be
        served, QueueFullError when too many wait, EngineDeadError when the engine ends. Leaving
        the iteration early (closing the iterator, cancelling the task) aborts the request.
        """
        ...

    async def abort(self, request_id: str) -> None: ...

    async def check_health(self) -> None:
        """Raises EngineDeadError when the engine has ended or no longer answers."""
        ...

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool: ...

    async def sleep(self, level: int = 1, mode: str = "abort") -> None: ...

    async def wake_up(self, tags: list[str] | None = None) -> bool: ...

    async def is_sleeping(self) -> bool: ...

    async def start_profile(self) -> str: ...

    async def stop_profile(self) -> str: ...

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]: ...

    async def cache_session(
        self, session: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        """Pin, demote, prefetch or release a session's blocks; how many of them are cached.

        ttl: seconds that a pin holds. salt: the cache_salt of the session's requests.
        """
        ...

    async def is_ready(self) -> None:
        """Waits until the engine can serve; raises EngineDeadError if it ended first."""
        ...

    def shutdown(self) -> None: ...
