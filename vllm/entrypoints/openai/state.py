"""What the endpoints share: the engine, the model's names, the requests being answered."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)

from vllm.core.errors import VLLMValidationError
from vllm.engine.client import EngineClient
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.openai.errors import unknown_model
from vllm.entrypoints.openai.keys import digest
from vllm.entrypoints.openai.sse import Running
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.metrics import Metrics
from vllm.observe.tracing import Tracer
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

T = TypeVar("T")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Encoding a longer text takes milliseconds, in which no other request would move.
_THREAD_ABOVE_CHARS = 32768


def _process_metrics() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


@dataclass(slots=True)
class Said:
    """What one output has said, part by part."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Job:
    """One prompt on its way to the engine. `engine_id` is unique, whatever ids clients choose."""

    engine_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    text: str | None = None  # the prompt as the client wrote it; None for token ids
    priority: int = 0
    cache_salt: str | None = None
    hints: dict[str, Any] = field(default_factory=dict)  # `core.retention.HINT_FIELDS`
    said: dict[int, Said] = field(default_factory=dict)  # by output, for the log


@dataclass(slots=True)
class Server:
    """One per app, at `app.state.server`."""

    engine: EngineClient
    args: ServerArgs
    metrics: Metrics | None = None
    tracer: Tracer | None = None
    running: Running = field(default_factory=Running)
    created: int = field(default_factory=lambda: int(time.time()))
    process_metrics: CollectorRegistry = field(default_factory=_process_metrics)
    admin_digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.admin_digests = [digest(key) for key in self.args.admin_api_key or []]

    @property
    def model_names(self) -> list[str]:
        return self.args.served_model_name or [self.engine.config.model.name]

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises the 404 for a model that is not served."""
        if name and name not in self.model_names:
            raise unknown_model(name)
        return name or self.model_names[0]

    def tokenizer(self) -> Tokenizer:
        if self.engine.tokenizer is None:
            raise VLLMValidationError(
                "this server runs without a tokenizer: send token ids", parameter="prompt"
            )
        return self.engine.tokenizer

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encode = partial(self.tokenizer().encode, text, add_special_tokens=add_special_tokens)
        return encode() if len(text) <= _THREAD_ABOVE_CHARS else await asyncio.to_thread(encode)

    async def spans(
        self, text: str, places: list[tuple[int, int]], *, add_special_tokens: bool
    ) -> list[tuple[int, int]]:
        """See Tokenizer.spans."""
        find = partial(self.tokenizer().spans, text, places, add_special_tokens=add_special_tokens)
        return find() if len(text) <= _THREAD_ABOVE_CHARS else await asyncio.to_thread(find)

    async def attend(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Do the work unless the client hangs up; see `Running.attend`."""
        return await self.running.attend(request.receive, work)

    def room(
        self, prompt_len: int, asked: int | None, default: int | None, *, prompt: str, field: str
    ) -> int:
        """How many tokens may be generated behind such a prompt.

        What the client asks for must fit; a default is cut to what fits. Raises
        VLLMValidationError, naming the field `prompt` or `field`.
        """
        if prompt_len == 0:
            raise VLLMValidationError("The decoder prompt cannot be empty", parameter=prompt)
        limit = self.engine.max_model_len
        left = limit - prompt_len
        if left < 1:
            raise VLLMValidationError(
                f"This model's maximum context length is {limit} tokens, but the prompt has "
                f"{prompt_len}; at least one more is needed for the output",
                parameter=prompt,
                value=prompt_len,
            )
        if asked is None:
            return left if default is None else min(left, default)
        if asked > left:
            raise VLLMValidationError(
                f"This model's maximum context length is {limit} tokens, but {asked} output tokens "
                f"are asked for behind a prompt of {prompt_len}",
                parameter=field,
                value=asked,
            )
        return asked

    def truncated(
        self, ids: list[int], keep: int | None, side: str | None, reserve: int
    ) -> list[int]:
        """At most `keep` tokens, the last ones unless side is right; -1: as many as can fit."""
        if keep is None:
            return ids
        if keep == -1:
            keep = max(1, self.engine.max_model_len - reserve)
        if len(ids) <= keep:
            return ids
        return ids[:keep] if side == "right" else ids[len(ids) - keep :]

    async def outputs(self, job: Job) -> AsyncGenerator[RequestOutput, None]:
        """The engine's outputs for a job; leaving early aborts it."""
        if self.args.enable_log_requests:
            self._log_request(job)
        stream = self.engine.generate(
            {"prompt_token_ids": job.prompt_token_ids, **job.hints},
            job.params,
            job.engine_id,
            priority=job.priority,
            cache_salt=job.cache_salt,
        )
        if self.tracer is not None:
            stream = self.tracer.follow(job.engine_id, job.params, stream)
        try:
            async for output in stream:
                if any(o.finish_reason == "error" for o in output.outputs):
                    raise RuntimeError(f"the engine gave up on request {job.engine_id}")
                if self.args.enable_log_outputs:
                    self._log_outputs(job, output)
                yield output
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _log_request(self, job: Job) -> None:
        most = self.args.max_log_len
        text = job.text if job.text is None else job.text[:most]
        logger.info(
            "Received request %s: prompt: %r, params: %s, prompt_token_ids: %s",
            job.engine_id,
            text,
            job.params,
            job.prompt_token_ids[:most],
        )

    def _log_outputs(self, job: Job, result: RequestOutput) -> None:
        """A line for each output that has ended; a stream's parts are put together for it."""
        most = self.args.max_log_len
        for output in result.outputs:
            said = job.said.setdefault(output.index, Said())
            said.texts.append(output.text)
            said.token_ids += output.token_ids
            if output.finished():
                logger.info(
                    "Generated response %s, output %d: text: %r, token_ids: %s, finish_reason: %s",
                    job.engine_id,
                    output.index,
                    "".join(said.texts)[:most],
                    said.token_ids[:most],
                    output.finish_reason,
                )


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


def request_id(request: Request, asked: str | None) -> str:
    """The client's id for its request, if it is one that can be logged and echoed, or a new one."""
    for given in (request.headers.get("x-request-id"), asked):
        if given is not None and REQUEST_ID.fullmatch(given):
            break
    else:
        given = uuid.uuid4().hex
    request.scope["vllm.request_id"] = given  # for the response's header
    return given


def engine_id(public_id: str, index: int) -> str:
    """A prompt's id in the engine: the random part keeps repeated client ids apart."""
    return f"{public_id}-{index}-{uuid.uuid4().hex[:12]}"
