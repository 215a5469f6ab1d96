"""POST /v1/completions: text goes on from a prompt."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from pydantic import Field
from starlette.responses import Response

from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.beams import check_beams, outputs
from vllm.entrypoints.openai.body import HintedRoute, json_response
from vllm.entrypoints.openai.compression import check_compression, told
from vllm.entrypoints.openai.fanout import gather, merge
from vllm.entrypoints.openai.logprobs import CompletionLogprobs, LogprobWriter, prompt_positions
from vllm.entrypoints.openai.protocol import MAX_PROMPTS, GenerationBody, TokenId
from vllm.entrypoints.openai.sse import EventStream, event
from vllm.entrypoints.openai.state import Job, Server, engine_id, request_id, server_of
from vllm.entrypoints.openai.timing import Timing, timing
from vllm.entrypoints.openai.usage import Usage, UsageWish, usage
from vllm.logprobs import PositionLogprobs
from vllm.outputs import CompletionOutput, RequestOutput

DEFAULT_MAX_TOKENS = 16

router = APIRouter(route_class=HintedRoute)


class CompletionBody(GenerationBody):
    refused = GenerationBody.refused | {"suffix": ()}

    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[list[TokenId]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: int | None = None
    echo: bool | None = False
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def prompt_only(self) -> bool:
        return bool(self.echo) and self.max_tokens == 0


class Choice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Any] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A whole answer, or a chunk of a stream: they have the same shape."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType = UNSET
    metrics: Timing | UnsetType = UNSET


@router.post("/v1/completions")
async def create_completion(body: CompletionBody, request: Request) -> Response:
    server = server_of(request)
    model = server.check_model(body.model)
    body.check(server.engine.config)
    check_beams(body)
    if body.max_tokens == 0 and not body.echo:
        raise VLLMValidationError("max_tokens must be at least 1", parameter="max_tokens", value=0)
    id = f"cmpl-{request_id(request, body.request_id)}"
    answer = Completion(id=id, created=int(time.time()), model=model, choices=[])
    jobs = [await _job(server, body, prompt, id, i) for i, prompt in enumerate(body.prompts)]
    if body.stream:
        return EventStream(_events(server, body, jobs, answer), server.running)
    done = await server.attend(request, gather([outputs(server, body, job) for job in jobs]))
    _fill(answer, server, body, jobs, done)
    return json_response(answer)


async def _job(
    server: Server, body: CompletionBody, prompt: str | list[int], id: str, index: int
) -> Job:
    text = prompt if isinstance(prompt, str) else None
    if isinstance(prompt, str):
        ids = await server.encode(prompt, add_special_tokens=body.add_special_tokens)
    else:
        ids = prompt
    reserve = max(1, DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
    kept = server.truncated(ids, body.truncate_prompt_tokens, body.truncation_side, reserve)
    if len(kept) < len(ids):
        ids, text = kept, None
    asked = body.max_tokens
    if body.prompt_only:
        asked = 1  # a step that samples nothing does not exist; the token is thrown away
    max_tokens = server.room(
        len(ids), asked, DEFAULT_MAX_TOKENS, prompt="prompt", field="max_tokens"
    )
    prompt_logprobs = body.prompt_logprobs
    if prompt_logprobs is None and body.echo:
        prompt_logprobs = body.logprobs
    params = body.sampling_params(
        server.engine.config.model.generation,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
        detokenize=server.engine.tokenizer is not None,
    )
    check_compression(server.engine.config, params, len(ids))
    return Job(
        engine_id(id, index), ids, params, text, body.priority, body.cache_salt, body.hints()
    )


class _ChoiceWriter:
    """Writes one choice, whole or piece by piece."""

    def __init__(self, server: Server, body: CompletionBody, job: Job, index: int) -> None:
        self._body, self._job, self._index = body, job, index
        self._tokenizer = server.engine.tokenizer
        self._logprobs = LogprobWriter.of(server, body)
        self._begun = False
        self.generated = 0

    def write(self, result: RequestOutput, output: CompletionOutput) -> Choice:
        body, job, first = self._body, self._job, not self._begun
        self._begun = True
        made, text = output.token_ids, output.text
        told: list[PositionLogprobs | None] = [*(output.logprobs or [])]
        if body.prompt_only:
            made, text, told = [], "", []
        self.generated += len(made)
        ids, echo, echoed = made, "", 0
        if body.echo and first:
            echo, echoed = self._prompt_text(), len(job.prompt_token_ids)
            ids, text = job.prompt_token_ids + made, echo + text
            told = [*(result.prompt_logprobs or []), *told]
        choice = Choice(self._index, text, None, output.finish_reason, output.stop_reason)
        if body.logprobs is not None and (ids or not body.stream):
            choice.logprobs = self._logprobs.completion(ids, told, echo, echoed)
        if body.return_token_ids:
            choice.token_ids = made
            if first:
                choice.prompt_token_ids = job.prompt_token_ids
        if body.prompt_logprobs is not None and not body.stream:
            choice.prompt_logprobs = prompt_positions(result.prompt_logprobs) or []
        return choice

    def _prompt_text(self) -> str:
        if self._job.text is not None:
            return self._job.text
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(self._job.prompt_token_ids)


def _fill(
    answer: Completion,
    server: Server,
    body: CompletionBody,
    jobs: list[Job],
    done: list[RequestOutput],
) -> None:
    """Choice k of prompt p has index p*n + k."""
    prompt = completion = 0
    for p, (job, result) in enumerate(zip(jobs, done, strict=True)):
        prompt += len(job.prompt_token_ids)
        for output in sorted(result.outputs, key=lambda o: o.index):
            writer = _ChoiceWriter(server, body, job, p * body.count + output.index)
            answer.choices.append(writer.write(result, output))
            completion += writer.generated
    answer.usage = usage(prompt, completion, done, told(o for r in done for o in r.outputs))
    answer.metrics = timing(server, done)


async def _events(
    server: Server, body: CompletionBody, jobs: list[Job], answer: Completion
) -> AsyncGenerator[bytes, None]:
    wish = UsageWish(body, server.args.enable_force_include_usage)
    writers = [
        _ChoiceWriter(server, body, job, p * body.count + k)
        for p, job in enumerate(jobs)
        for k in range(body.count)
    ]
    latest: list[RequestOutput | None] = [None] * len(jobs)
    ended = []
    async with aclosing(merge([server.outputs(job) for job in jobs])) as results:
        async for p, result in results:
            latest[p] = result
            for output in result.outputs:
                if not output.token_ids and not output.text and output.finish_reason is None:
                    continue
                if output.finished():
                    ended.append(output)
                writer = writers[p * body.count + output.index]
                answer.choices = [writer.write(result, output)]
                if wish.in_chunks:
                    prompt = len(jobs[p].prompt_token_ids)
                    answer.usage = usage(prompt, writer.generated, [result])
                yield event(answer)
    if wish.at_end:
        answer.choices = []
        prompt = sum(len(job.prompt_token_ids) for job in jobs)
        answer.usage = usage(prompt, sum(w.generated for w in writers), latest, told(ended))
        answer.metrics = timing(server, latest) if body.count == 1 else UNSET
        yield event(answer)
