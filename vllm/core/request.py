"""A request as the engine core sees it, and what the core sends back.

These are the messages between the front end (text, HTTP) and the engine core (tokens). They travel
as msgpack when the core is a process of its own, and as they are when it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vllm.core.compression import CompressionParams, CompressionStats
from vllm.core.retention import NO_HINTS, CacheHints
from vllm.sampling_params import SamplingParams


class EngineRequest(msgspec.Struct, kw_only=True, omit_defaults=True, tag="add"):
    """One validated, tokenised request. `request_id` is unique among the engine's requests."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int  # params.max_tokens, or what is left of the context
    arrival: float  # seconds, the front end's wall clock
    priority: int = 0  # lower runs first, under the priority policy
    cache_salt: str | None = None
    eos_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []
    grammar: str | None = None  # what structured outputs compiled to
    compression: CompressionParams | None = None  # None: keep every KV
    hints: CacheHints = NO_HINTS
    # Of the prompt's full blocks, where a simulation knows them: then they are not hashed.
    block_keys: list[bytes] = []
    public_id: str = ""  # what the client calls it, where the engine has a name of its own


class AbortRequests(msgspec.Struct, tag="abort"):
    """Forget these requests, whatever their state; unknown ids are ignored."""

    request_ids: list[str]


class EndOutputs(msgspec.Struct, tag="end"):
    """These outputs, (request id, index), met a stop string, which only the front end can see."""

    outputs: list[tuple[str, int]]


class Call(msgspec.Struct, tag="call"):
    """Call one of the core's utility methods; answered by a `Reply` with the same number."""

    number: int
    method: str
    args: list[object] = []


class TokenLogprobs(msgspec.Struct, array_like=True):
    """One position: `ids[0]` is the sampled or prompt token, of rank `rank`; then the top ones."""

    ids: list[int]
    logprobs: list[float]
    rank: int


class SequenceOutput(msgspec.Struct, omit_defaults=True):
    """What one step gave one sequence of a request."""

    request_id: str
    index: int  # which of the request's n outputs
    token_ids: Sequence[int]  # a list, or an array from those that coasted
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None  # of this step's part of the prompt
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    cached_by_source: dict[str, int] = {}  # the same by tier
    queued: float = 0.0  # seconds of the core's clock
    scheduled: float = 0.0
    preemptions: int = 0
    compression: CompressionStats | None = None  # with the last output, if it may be compressed


class TierStats(msgspec.Struct, omit_defaults=True):
    """One tier below the device: gauges, and counts since it was made."""

    tier: str
    capacity: int = 0  # blocks
    blocks: int = 0
    queued: int = 0  # transfers that have not ended
    bytes_loaded: int = 0
    bytes_stored: int = 0
    load_seconds: float = 0.0  # as they were, of transfers that have ended
    predicted_seconds: float = 0.0  # as the choice to load them assumed
    deadline_misses: int = 0
    failures: int = 0
    corrupt: int = 0  # of the failures: blobs that were not what they should be
    dropped_stores: int = 0


class EngineStats(msgspec.Struct, omit_defaults=True):
    """Gauges at the end of a step, and counts since the last one that was sent."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # share of blocks that running sequences hold, 0 to 1
    prefix_requests: int = 0  # that looked for a cached prefix
    prefix_queries: int = 0  # tokens
    prefix_hits: int = 0  # tokens, found on the device
    tier_hits: dict[str, int] = {}  # tokens, found in slower tiers, by tier
    preemptions: int = 0
    computed_prompt_tokens: int = 0
    generated_tokens: int = 0
    step_tokens: list[int] = []  # tokens of each step
    block_lifetimes: list[float] = []  # seconds, of sampled blocks that were evicted
    block_idles: list[float] = []
    block_gaps: list[float] = []
    compressions: int = 0
    dropped_kvs: int = 0  # by these, over all layers and heads
    compressed_prefix_hits: int = 0  # tokens, of shared compressed prefixes
    chose_load: int = 0  # cached runs that were loaded, and those that were faster to compute
    chose_compute: int = 0
    chose_both: int = 0  # and those whose end was loaded while their beginning was computed
    tiers: list[TierStats] = []


class RequestEnd(msgspec.Struct, kw_only=True):
    """What became of a request: tokens, and seconds."""

    reason: str  # of its first output's end
    prompt_tokens: int
    generation_tokens: int  # of all its n outputs
    longest_output: int
    cached_tokens: int
    e2e: float
    queue: float
    prefill: float
    decode: float
    n: int
    max_tokens: int | None
    preemptions: int


class StepOutputs(msgspec.Struct, omit_defaults=True, tag="step"):
    """All that one or more steps gave, for the front end."""

    outputs: list[SequenceOutput]
    stats: EngineStats | None = None
    time: float = 0.0  # the core's clock when the step ended


class Reply(msgspec.Struct, omit_defaults=True, tag="reply"):
    """The answer to a `Call`: a result or an error's text."""

    number: int
    result: object = None
    error: str | None = None
    invalid: bool = False  # the error is the caller's fault


class Ready(msgspec.Struct, tag="ready"):
    """The core is loaded; what the front end wants to know of it."""

    num_blocks: int
    block_size: int
    max_model_len: int
    kernels: dict[str, str]


class Died(msgspec.Struct, tag="died"):
    """The core's last words."""

    error: str


ToCore = EngineRequest | AbortRequests | EndOutputs | Call
FromCore = StepOutputs | Reply | Ready | Died
