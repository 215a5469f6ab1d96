"""An engine that says the prompt's tokens again: every answer can be told beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vllm.config import EngineArgs, VllmConfig
from vllm.core.compression import CompressionStats
from vllm.core.errors import EngineDeadError, VLLMValidationError
from vllm.engine.tokenizer import Tokenizer
from vllm.logprobs import Logprob, PositionLogprobs
from vllm.outputs import CompletionOutput, RequestOutput, RequestStateStats
from vllm.sampling_params import RequestOutputKind, SamplingParams

CACHED = 3  # cached tokens that it claims, when the prompt has that many


@cache
def _tokenizer(folder: Path, chat_template: str | None) -> Tokenizer:
    return Tokenizer(folder, chat_template)


@dataclass
class Asked:
    request_id: str
    ids: list[int]
    params: SamplingParams
    priority: int
    cache_salt: str | None
    prompt: dict[str, Any] = field(default_factory=dict)  # as it was given


class FakeEngine:
    """Implements `EngineClient`. Output k of n begins at the prompt's token k, and goes around."""

    def __init__(self, **engine_args: Any) -> None:
        self.config: VllmConfig = EngineArgs(**engine_args).create_engine_config(serving=True)
        model = self.config.model
        self.tokenizer: Tokenizer | None = (
            None
            if model.skip_tokenizer_init
            else _tokenizer(model.tokenizer_folder, model.chat_template)
        )
        self.max_model_len = self.config.model.max_model_len
        self.asked: list[Asked] = []
        self.aborted: list[str] = []
        self.sessions: list[tuple[str, str, float | None, str | None]] = []
        self.delay = 0.0  # seconds a token
        self.ends_after: int | None = None  # tokens, then the end of the sequence
        self.end_reason = "stop"
        self.says: list[str] | None = None  # each token's text, then the end of the sequence
        self.fails: Exception | None = None  # at once
        self.fails_after: int | None = None  # tokens, then `fails`
        self.errored = False
        self.sleeping = False
        self.told: list[tuple[Any, ...]] = []

    async def check_health(self) -> None:
        if self.errored:
            raise EngineDeadError

    async def is_ready(self) -> None:
        await self.check_health()

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        self.told.append(("reset_prefix_cache", reset_running_requests, reset_connector))
        return not self.asked or reset_running_requests

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.told.append(("sleep", level, mode))
        self.sleeping = True

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        self.told.append(("wake_up", tags))
        self.sleeping = tags is not None
        return not self.sleeping

    async def is_sleeping(self) -> bool:
        return self.sleeping

    async def start_profile(self) -> str:
        return "/profiles"

    async def stop_profile(self) -> str:
        return "/profiles/1.json"

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        if method == "slow":
            raise TimeoutError
        return [[method, *args, kwargs]]

    async def cache_session(
        self, session: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        self.sessions.append((session, verb, ttl, salt))
        return 3

    def shutdown(self) -> None:
        self.errored = True

    def prompt(self, which: int = -1) -> str:
        """What a request, by default the last, asked, as text with its marks."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(self.asked[which].ids, skip_special_tokens=False)

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        ids, params = prompt["prompt_token_ids"], sampling_params
        if self.says is not None:
            self.ends_after = len(self.says)
        params.verify_for(self.config.model.vocab_size, self.config.model.max_logprobs)
        if bad := [i for i in ids if i >= self.config.model.vocab_size]:
            raise VLLMValidationError(f"{bad[0]} is out of vocabulary", parameter="prompt")
        self.asked.append(Asked(request_id, ids, params, priority, cache_salt, prompt))
        finished = False
        try:
            for step in range(1, (params.max_tokens or 1) + 1):
                await asyncio.sleep(self.delay)
                if self.errored:
                    raise EngineDeadError
                if self.fails is not None and step > (self.fails_after or 0):
                    raise self.fails
                finished = step == params.max_tokens or step == self.ends_after
                if finished or params.output_kind is RequestOutputKind.DELTA:
                    yield self._output(request_id, ids, params, step, finished)
                if finished:
                    return
        finally:
            if not finished:
                self.aborted.append(request_id)

    def _output(
        self, request_id: str, ids: list[int], params: SamplingParams, step: int, finished: bool
    ) -> RequestOutput:
        first = step - 1 if params.output_kind is RequestOutputKind.DELTA else 0
        outputs = []
        for index in range(params.n):
            made = [ids[(index + i) % len(ids)] for i in range(first, step)]
            reason = None
            if finished:
                reason = self.end_reason if step == self.ends_after else "length"
            outputs.append(
                CompletionOutput(
                    index=index,
                    text=self._texts(made, first),
                    token_ids=made,
                    logprobs=None
                    if params.logprobs is None
                    else [self._position(t, params.logprobs) for t in made],
                    finish_reason=reason,
                    kv_compression=self._stats(ids, step) if finished else None,
                )
            )
        prompt_logprobs: Any = None
        if params.prompt_logprobs is not None:
            prompt_logprobs = [None, *(self._position(t, params.prompt_logprobs) for t in ids[1:])]
        return RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=ids,
            prompt_logprobs=prompt_logprobs,
            outputs=outputs,
            finished=finished,
            num_cached_tokens=CACHED if len(ids) > CACHED else 0,
            metrics=RequestStateStats(
                arrival_time=1.0,
                queued_ts=1.0,
                scheduled_ts=1.5,
                first_token_ts=2.0,
                last_token_ts=2.0 + 0.1 * (step - 1),
                num_generation_tokens=step * params.n,
            ),
        )

    def _stats(self, ids: list[int], step: int) -> CompressionStats | None:
        """As if half of the KVs of four layers and heads had been dropped, once."""
        if self.config.compression is None:
            return None
        kvs = len(ids) + step - 1
        return CompressionStats(16 * kvs, 8 * kvs, 1, [[kvs // 2] * 4] * 4)

    def _texts(self, made: list[int], first: int) -> str:
        if self.says is not None:
            return "".join(self.says[first : first + len(made)])
        return "".join(map(self._text, made))

    def _text(self, token: int) -> str:
        return "" if self.tokenizer is None else self.tokenizer.text_of(token)

    def _position(self, token: int, top: int) -> PositionLogprobs:
        """The token itself is likeliest; the ids behind it follow."""
        found = {token: Logprob(-0.5, 1, self._text(token))}
        for rank in range(2, top + 1):
            other = (token + rank) % self.config.model.vocab_size
            found[other] = Logprob(-float(rank), rank, self._text(other))
        return found
