"""`metrics` of an answer (--enable-per-request-metrics): where its request's time went."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from vllm.entrypoints.openai.state import Server
from vllm.outputs import RequestOutput


class Timing(msgspec.Struct):
    """Milliseconds, and tokens a second from the first step of the request to its last token."""

    time_to_first_token_ms: float
    generation_time_ms: float  # from the first token to the last
    queue_time_ms: float
    mean_itl_ms: float | None  # None for one token
    tokens_per_second: float | None


def timing(server: Server, results: Sequence[RequestOutput | None]) -> Timing | UnsetType:
    """Of an answer that is one output of one prompt, where the server is to tell."""
    if not server.args.enable_per_request_metrics or len(results) != 1:
        return UNSET
    [result] = results
    if result is None or result.metrics is None or len(result.outputs) != 1:
        return UNSET
    stats = result.metrics
    count = stats.num_generation_tokens
    generation = stats.last_token_ts - stats.first_token_ts
    busy = stats.last_token_ts - stats.scheduled_ts
    return Timing(
        time_to_first_token_ms=1000 * stats.first_token_latency,
        generation_time_ms=1000 * generation,
        queue_time_ms=1000 * max(0.0, stats.scheduled_ts - stats.queued_ts),
        mean_itl_ms=1000 * generation / (count - 1) if count > 1 else None,
        tokens_per_second=count / busy if busy > 0 else None,
    )
