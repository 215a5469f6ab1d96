"""`use_beam_search` in completions and chats."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from vllm.core.errors import VLLMValidationError
from vllm.engine.input import end_tokens
from vllm.entrypoints.beam import BeamSearch, step_params
from vllm.entrypoints.openai.compression import PASSED_ON
from vllm.entrypoints.openai.fanout import gather
from vllm.entrypoints.openai.protocol import GenerationBody
from vllm.entrypoints.openai.state import Job, Server
from vllm.logprobs import PositionLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams


def outputs(server: Server, body: GenerationBody, job: Job) -> AsyncGenerator[RequestOutput, None]:
    """The engine's outputs for a job, or its beams as one output with n choices, best first."""
    return _beams(server, body, job) if body.use_beam_search else server.outputs(job)


def check_beams(body: GenerationBody) -> None:
    """Raises VLLMValidationError for what does not go with a beam search."""
    if not body.use_beam_search:
        if body.length_penalty not in (None, 1.0):
            raise VLLMValidationError(
                "length_penalty needs use_beam_search", parameter="length_penalty"
            )
        return
    refused = ("stream", "stop", "prompt_logprobs", "logit_bias", "min_tokens", "min_p")
    given = [name for name in refused if getattr(body, name)]
    given += [name for name in PASSED_ON if getattr(body, name, None) is not None]
    if given:
        raise VLLMValidationError(f"beam search does not take {given[0]}", parameter=given[0])
    if body.structure() is not None:
        raise VLLMValidationError(
            "beam search does not take structured outputs", parameter="use_beam_search"
        )


async def _beams(
    server: Server, body: GenerationBody, job: Job
) -> AsyncGenerator[RequestOutput, None]:
    engine = server.engine
    asked = job.params
    params = BeamSearchParams(
        beam_width=body.count,
        max_tokens=asked.max_tokens or 1,
        ignore_eos=asked.ignore_eos,
        temperature=body.temperature or 0.0,
        length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
    )
    one = step_params(params, engine.config.model.max_logprobs)
    eos = frozenset(end_tokens(engine.config.model, engine.tokenizer))
    search = BeamSearch(job.prompt_token_ids, params, eos, params.max_tokens)
    first: RequestOutput | None = None
    while not search.done:
        jobs = [
            Job(
                f"{job.engine_id}-{search.steps}-{i}",
                tokens,
                one,
                None,
                job.priority,
                job.cache_salt,
                job.hints,
            )
            for i, tokens in enumerate(search.prompts)
        ]
        steps = await gather([server.outputs(step) for step in jobs])
        if not search.steps:
            first = steps[0]
        told = [step.outputs[0].logprobs for step in steps]
        search.advance([position[0] for position in told if position])
    prompt = len(job.prompt_token_ids)
    yield RequestOutput(
        request_id=job.engine_id,
        prompt=None,
        prompt_token_ids=job.prompt_token_ids,
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(
                index=index,
                text=_text(server, beam.tokens[prompt:], skip_special=asked.skip_special_tokens),
                token_ids=beam.tokens[prompt:],
                cumulative_logprob=beam.cum_logprob,
                logprobs=_asked_for(beam.logprobs, asked.logprobs, beam.tokens[prompt:]),
                finish_reason=beam.finish_reason,
            )
            for index, beam in enumerate(search.result())
        ],
        finished=True,
        num_cached_tokens=first.num_cached_tokens if first else 0,
        cached_by_source=first.cached_by_source if first else {},
    )


def _text(server: Server, tokens: list[int], *, skip_special: bool) -> str:
    tokenizer = server.engine.tokenizer
    return "" if tokenizer is None else tokenizer.decode(tokens, skip_special_tokens=skip_special)


def _asked_for(
    told: list[PositionLogprobs], count: int | None, tokens: list[int]
) -> list[PositionLogprobs] | None:
    """Of each position the token itself and the `count` likeliest."""
    if count is None:
        return None
    return [
        {i: found for i, found in position.items() if i == token or (found.rank or 0) <= count}
        for token, position in zip(tokens, told, strict=False)
    ]
