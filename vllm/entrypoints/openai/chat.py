"""POST /v1/chat/completions: the next message of a conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from vllm.entrypoints.openai.beams import outputs
from vllm.entrypoints.openai.body import HintedRoute, json_response
from vllm.entrypoints.openai.compression import told
from vllm.entrypoints.openai.fanout import gather
from vllm.entrypoints.openai.logprobs import ChatLogprobs, LogprobWriter, prompt_positions
from vllm.entrypoints.openai.speech import Said, Speech, ToolCallDelta, merged
from vllm.entrypoints.openai.sse import EventStream, event
from vllm.entrypoints.openai.state import Job, Server, request_id, server_of
from vllm.entrypoints.openai.timing import Timing, timing
from vllm.entrypoints.openai.turn import ChatBody, Turn
from vllm.entrypoints.openai.usage import Usage, UsageWish, usage
from vllm.outputs import CompletionOutput, RequestOutput

router = APIRouter(route_class=HintedRoute)


class AnswerMessage(msgspec.Struct):
    role: str
    content: str | None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the same, by its older name
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET


class Choice(msgspec.Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    metrics: Timing | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Any] | UnsetType = UNSET


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Chunk(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType = UNSET
    metrics: Timing | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    server = server_of(request)
    model = server.check_model(body.model)
    id = f"chatcmpl-{request_id(request, body.request_id)}"
    turn = await Turn.begin(server, body, id)
    if body.stream:
        chunk = Chunk(id=id, created=int(time.time()), model=model, choices=[])
        return EventStream(_events(turn, chunk), server.running)
    [result] = await server.attend(request, gather([outputs(server, body, turn.job)]))
    answer = _answer(turn, result, id, model)
    return json_response(answer)


class _Voice:
    """Who answers, and what an echo repeats."""

    def __init__(self, server: Server, body: ChatBody) -> None:
        last = body.messages[-1]
        self.role = server.args.response_role if body.add_generation_prompt else last.role
        repeats = body.echo and last.role == self.role
        self.echo: str = last.plain("messages")["content"] if repeats else ""


def _choice(
    body: ChatBody, voice: _Voice, writer: LogprobWriter, speech: Speech, output: CompletionOutput
) -> Choice:
    parts = [speech.feed(output.text), speech.end()]
    reasoning = "".join(said.reasoning for said in parts) if body.include_reasoning else ""
    content = voice.echo + "".join(said.content for said in parts)
    message = AnswerMessage(voice.role, content)
    if reasoning:
        message.reasoning = message.reasoning_content = reasoning
    if speech.called:
        message.tool_calls = merged([call for said in parts for call in said.calls])
        message.content = content or None
    return Choice(
        index=output.index,
        message=message,
        logprobs=_logprobs(writer, body, output),
        finish_reason=speech.finish_reason(output.finish_reason),
        stop_reason=output.stop_reason,
        token_ids=output.token_ids if body.return_token_ids else UNSET,
    )


def _answer(turn: Turn, result: RequestOutput, id: str, model: str) -> ChatCompletion:
    server, body, job = turn.server, turn.body, turn.job
    voice, writer = _Voice(server, body), LogprobWriter.of(server, body)
    choices = [
        _choice(body, voice, writer, turn.speech(), output)
        for output in sorted(result.outputs, key=lambda o: o.index)
    ]
    answer = ChatCompletion(
        id=id,
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=usage(
            len(job.prompt_token_ids),
            sum(len(output.token_ids) for output in result.outputs),
            [result],
            told(result.outputs),
        ),
        metrics=timing(server, [result]),
    )
    if body.return_token_ids:
        answer.prompt_token_ids = job.prompt_token_ids
    if body.prompt_logprobs is not None:
        answer.prompt_logprobs = prompt_positions(result.prompt_logprobs) or []
    return answer


def _logprobs(
    writer: LogprobWriter, body: ChatBody, output: CompletionOutput
) -> ChatLogprobs | None:
    if not body.logprobs or output.logprobs is None:
        return None
    return writer.chat(output.token_ids, output.logprobs, body.top_logprobs or 0)


def _delta(body: ChatBody, said: Said) -> Delta:
    delta = Delta(content=said.content or None, tool_calls=said.calls or None)
    if said.reasoning and body.include_reasoning:
        delta.reasoning = delta.reasoning_content = said.reasoning
    if not (said.reasoning or said.calls):
        delta.content = said.content
    return delta


async def _events(turn: Turn, chunk: Chunk) -> AsyncGenerator[bytes, None]:
    """Per choice: the role, the pieces of content, and with the last piece why it ended."""
    server, body, job = turn.server, turn.body, turn.job
    wish = UsageWish(body, server.args.enable_force_include_usage)
    writer = LogprobWriter.of(server, body)
    prompt, generated = len(job.prompt_token_ids), [0] * body.count
    latest: RequestOutput | None = None
    speeches = [turn.speech() for _ in range(body.count)]
    begun, ended = False, []
    async with aclosing(server.outputs(job)) as results:
        async for result in results:
            latest = result
            if not begun:
                begun = True
                if wish.in_chunks:
                    chunk.usage = usage(prompt, 0, [result])
                for opening in _openings(server, body, job, chunk):
                    yield event(opening)
                chunk.prompt_token_ids = UNSET
            for output in result.outputs:
                if not output.token_ids and not output.text and output.finish_reason is None:
                    continue
                if output.finished():
                    ended.append(output)
                speech = speeches[output.index]
                said = speech.feed(output.text)
                if output.finish_reason is not None:
                    said = said.joined(speech.end())
                choice = ChunkChoice(output.index, _delta(body, said))
                choice.logprobs = _logprobs(writer, body, output)
                choice.finish_reason = speech.finish_reason(output.finish_reason)
                if output.finish_reason is not None:
                    choice.stop_reason = output.stop_reason
                if body.return_token_ids:
                    choice.token_ids = output.token_ids
                generated[output.index] += len(output.token_ids)
                chunk.choices = [choice]
                if wish.in_chunks:
                    chunk.usage = usage(prompt, generated[output.index], [result])
                yield event(chunk)
    if wish.at_end:
        chunk.choices = []
        chunk.usage = usage(prompt, sum(generated), [latest], told(ended))
        chunk.metrics = timing(server, [latest]) if body.count == 1 else UNSET
        yield event(chunk)


def _openings(server: Server, body: ChatBody, job: Job, chunk: Chunk) -> list[Chunk]:
    """The chunks that tell who answers, one a choice, and what is echoed."""
    voice = _Voice(server, body)
    if body.return_token_ids:
        chunk.prompt_token_ids = job.prompt_token_ids
    deltas = [Delta(role=voice.role, content="")]
    if voice.echo:
        deltas.append(Delta(content=voice.echo))
    return [
        msgspec.structs.replace(chunk, choices=[ChunkChoice(index, delta)])
        for delta in deltas
        for index in range(body.count)
    ]
