"""What `generate` and `chat` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.core.compression import CompressionStats
from vllm.logprobs import PositionLogprobs, PromptLogprobs, SampleLogprobs


@dataclass(slots=True)
class RequestStateStats:
    """A request's times, in seconds of the engine's monotonic clock, and its counts."""

    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    num_generation_tokens: int = 0
    num_preemptions: int = 0

    @property
    def first_token_latency(self) -> float:
        return self.first_token_ts - self.arrival_time


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's `n` outputs.

    finish_reason is stop, length, abort or error; stop_reason is the stop string or stop token id
    that ended it, None at the end-of-sequence token. kv_compression: with the end, from an engine
    that compresses.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    kv_compression: CompressionStats | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request's state: all of its outputs so far, or the new part of a delta stream.

    num_cached_tokens counts the prompt tokens that the prefix cache saved; cached_by_source tells
    them by the tier that they came from.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestStateStats | None = None
    num_cached_tokens: int | None = None
    cached_by_source: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam. `tokens` are the prompt's and the generated ones; `cum_logprob` sums the latter."""

    tokens: list[int]
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """One prompt's beams, best first."""

    sequences: list[BeamSearchSequence]
