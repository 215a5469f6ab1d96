"""The engine in the caller's own process and thread: `add_request`, `step`, outputs."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from vllm.config import ModelConfig, VllmConfig
from vllm.core.clock import monotonic
from vllm.core.request import EngineRequest
from vllm.engine.core import EngineCore, ExecutorFactory
from vllm.engine.input import InputProcessor
from vllm.engine.output import OutputProcessor, Recorder, RequestRejectedError
from vllm.engine.tokenizer import make_tokenizer
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams


class LLMEngine:
    """Synchronous. `step` runs one step of the core and returns what is new."""

    def __init__(
        self,
        config: VllmConfig,
        make_executor: ExecutorFactory,
        recorder: Recorder | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = make_tokenizer(config)
        self.core = EngineCore(config, make_executor)
        self.max_model_len = self.core.capacity.max_model_len
        self._input = InputProcessor(config, self.tokenizer, self.max_model_len)
        self._output = OutputProcessor(self.tokenizer, recorder)
        self._held: list[RequestOutput] = []  # of a step that raised for another request
        self._rejected: list[RequestRejectedError] = []  # still to be raised

    @property
    def model_config(self) -> ModelConfig:
        return self.config.model

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
    ) -> None:
        """Queue a request. Raises VLLMValidationError, or ValueError for an id that is running."""
        arrival = time.time() if arrival_time is None else arrival_time
        request, text = self._input.make(
            request_id, prompt, params, priority=priority, cache_salt=cache_salt, arrival=arrival
        )
        self._output.add(request, text, monotonic())
        # Its outputs show the prompt to users, who may change what they are shown.
        own = [*request.prompt_token_ids]
        self.core.add(msgspec.structs.replace(request, prompt_token_ids=own))

    def make_request(self, request_id: str, prompt: Any, params: SamplingParams) -> EngineRequest:
        """What the core would be asked, without asking it. Raises VLLMValidationError."""
        return self._input.make(request_id, prompt, params)[0]

    def step(self) -> list[RequestOutput]:
        """One step. Raises RequestRejectedError when a request was refused by the core.

        The next step then returns what others got; a further refused one is told by the step after.
        """
        held, self._held = self._held, []
        if self._rejected:
            self._held = held
            raise self._rejected.pop(0)
        if not self.core.has_work:
            return held
        outputs, ended, self._rejected = self._output.process(self.core.step())
        if ended:
            self.core.end(ended)
        if self._rejected:
            self._held = held + outputs
            raise self._rejected.pop(0)
        return held + outputs

    def has_unfinished_requests(self) -> bool:
        return bool(len(self._output) or self._held or self._rejected)

    def abort_request(self, request_ids: str | list[str]) -> None:
        """Forget requests; their blocks are free at once."""
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        for request_id in ids:
            self._output.drop(request_id)
        self._held = [output for output in self._held if output.request_id not in ids]
        self._rejected = [error for error in self._rejected if error.request_id not in ids]
        self.core.abort(ids)

    def dump_prefix_metrics(self) -> dict[str, int]:
        return self.core.dump_prefix_metrics()

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forget the device's cached KVs, and with `reset_connector` those of slower tiers."""
        return self.core.reset_prefix_cache(reset_running_requests, reset_connector)

    def cache_session(
        self, session: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        """As `EngineClient.cache_session`."""
        return self.core.cache_session(session, verb, ttl, salt)

    def shutdown(self) -> None:
        self.core.shutdown()
